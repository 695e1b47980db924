"""What stands in a slot of a config, looked at before anything is built of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..errors import ConfigError
from ..registry.registries import FUSIONS, LOSSES, PluginRegistry

EXAMPLES: dict[str, tuple[PluginRegistry, str]] = {
    "feature": (LOSSES, "InfoNCELoss"),
    "logit": (LOSSES, "KDLoss"),
    "stage": (LOSSES, "FitNetLoss"),
    "task": (LOSSES, "CrossEntropyLoss"),
    "fusion": (FUSIONS, "L2GFusion"),
}
"""What each slot is built from, and an example of what may stand there."""


def check_dict(given: Any, slot: str, place: str) -> None:
    """Looks whether a dict is in a slot; the likeliest mistake is a name alone.

    Args:
        given: what the user gives.
        slot: one of ``EXAMPLES``.
        place: where it stands, for the message.

    Raises:
        ConfigError: if it is anything else.
    """
    if isinstance(given, Mapping):
        return
    registry, example = EXAMPLES[slot]
    meant = given if isinstance(given, str) and given in registry.module_dict else example
    what = type(given).__name__ if isinstance(given, nn.Module) else repr(given)
    raise ConfigError(f"{place}: expected a dict such as dict(type={meant!r}), got {what}")
