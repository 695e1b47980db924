"""What a user gives to a distiller, looked at before anything is built of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..errors import ConfigError, is_count, nearest, typed
from ..models.image_sizes import pixels
from ..registry.registries import PluginRegistry


def check_dict(given: Any, registry: PluginRegistry, place: str) -> None:
    """Looks whether a dict is where something is built from one; the likeliest mistake is a name alone.

    Args:
        given: what the user gives.
        registry: of what is built.
        place: where it stands, for the message.

    Raises:
        ConfigError: if it is anything else.
    """
    if isinstance(given, Mapping):
        return
    built = isinstance(given, nn.Module)
    name, what = (type(given).__name__, type(given).__name__) if built else (given, repr(given))
    if isinstance(name, str) and name in registry:
        raise ConfigError(f"{place}: expected dict(type={name!r}), got {what}")
    hint = nearest(name, registry.module_dict, limit=0) or f"; {typed('fbt plugins')} lists the names"
    raise ConfigError(f"{place}: expected dict(type=NAME) with the name of a {registry.name}, got {what}{hint}")


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
        if key in DATA_INFO and not is_count(value, least=0)
    ]
    if problems:
        raise ConfigError(problems)


def checked_size(given: Any) -> tuple[int, int] | None:
    """The size of images as :func:`pixels` reads it; None is None.

    Raises:
        ConfigError: if it is neither.
    """
    try:
        return None if given is None else pixels(given)
    except ValueError as error:
        raise ConfigError(f"image_size: {error}") from error
