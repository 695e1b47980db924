"""Modules that another module runs and does not own."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class Unowned(Generic[T]):
    """Holds a module (or a list or dict of modules) for a module that only runs it.

    torch registers every module that is an attribute of another. The weights would then be in the module tree twice:
    optimizer, checkpoints, EMA and DDP would take them for the second module's own. Whoever holds something here moves
    it with ``_apply`` and sets its mode by itself, where that is needed.

    Args:
        value: what is held.
    """

    def __init__(self, value: T) -> None:
        self.value = value
