"""What a callable takes, read off its signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def parameters_of(factory: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    """What a callable accepts by name, and whether that is all; a class that passes ``**kwargs`` on is followed."""
    mro = inspect.getmro(factory) if inspect.isclass(factory) else ()
    steps: list[Callable[..., Any]] = [vars(c)["__init__"] for c in mro if "__init__" in vars(c)] or [factory]
    accepted: dict[str, inspect.Parameter] = {}
    for step in steps:
        try:
            parameters = list(inspect.signature(step).parameters.values())
        except (TypeError, ValueError):
            return accepted, False
        for p in parameters[1:] if inspect.isclass(factory) else parameters:
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
                # What a base class requires, the class itself may provide.
                accepted.setdefault(
                    p.name, p if step is steps[0] or p.default is not p.empty else p.replace(default=None)
                )
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return accepted, True
    return accepted, False
