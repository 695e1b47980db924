"""What a user gives to a distiller, looked at before anything is built of it."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any

from torch import nn

from ..errors import ConfigError, nearest
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


DATA_INFO = ("num_classes", "num_samples", "num_labelled")
"""What a distiller may be told about the training data."""


def check_data_info(given: Any) -> None:
    """Looks whether what is said about the training data can be read.

    Raises:
        ConfigError: if it is no dict, has a key that nobody reads, or a value that is no count.
    """
    if not isinstance(given, Mapping):
        raise ConfigError(f"data_info: expected a dict such as dict(num_classes=10), got {given!r}")
    problems = [f"data_info: no key {key!r}{nearest(key, DATA_INFO)}" for key in given if key not in DATA_INFO]
    problems += [
        f"data_info: {key} must be a whole number from 0, not {value!r}"
        for key, value in given.items()
        if key in DATA_INFO and not _is_whole(value, 0)
    ]
    if problems:
        raise ConfigError(problems)


def checked_size(given: Any) -> tuple[int, int] | None:
    """The size of images as (height, width): one number is a square, and None is None.

    Raises:
        ConfigError: if it is neither.
    """
    if given is None:
        return None
    pair = (given, given) if isinstance(given, Integral) else given
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(_is_whole(side, 1) for side in pair):
        raise ConfigError(f"image_size: expected a number of pixels, or (height, width), got {given!r}")
    return int(pair[0]), int(pair[1])


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least
