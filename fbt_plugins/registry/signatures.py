"""What a callable takes: a config's arguments held against a signature, without a call."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import nearest


def argument_problems(factory: Callable[..., Any], arguments: Mapping[str, Any], where: str) -> list[str]:
    """Holds arguments against a signature without calling it.

    Args:
        factory: the class or function that would be called.
        arguments: its keyword arguments.
        where: what the lines begin with, a config key or a type.

    Returns:
        One line for each argument that is unknown or missing.
    """
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # built-in classes have no signature to hold anything against
        return []
    named = {n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    problems = []
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        problems += [f"{where}: no argument {a!r}{nearest(a, named, limit=12)}" for a in arguments if a not in named]
    problems += [line for a in arguments if a in named and (line := value_problem(where, named[a], arguments[a]))]
    missing = [n for n, p in named.items() if p.default is p.empty and n not in arguments]
    return problems + [f"{where}: argument {n!r} is missing" for n in missing]


LEAST = {
    **dict.fromkeys(("max_epochs", "max_iters", "val_interval", "interval", "batch_size", "input_size", "img_size"), 1),
    "num_workers": 0,
}
"""The smallest values of arguments that mean the same wherever they occur."""


def is_number(value: Any) -> bool:
    """Whether it is a number, which True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def value_problem(where: str, parameter: inspect.Parameter, value: Any) -> str | None:
    """Holds a value against what its parameter's default or annotation says it is.

    Args:
        where: what the line begins with.
        parameter: of the function that would get it.
        value: the value.

    Returns:
        One line if a truth value or a number is expected and this is none, or if it is too small; else None.
    """
    default, name = parameter.default, parameter.name
    number = is_number(value)
    expected = None
    if value is None or value is default:
        pass
    elif isinstance(default, bool):
        expected = None if isinstance(value, bool) else "True or False"
    elif parameter.annotation in (int, "int") and not (number and value % 1 == 0):
        expected = "a whole number"
    elif (isinstance(default, int | float) or parameter.annotation in (float, "float")) and isinstance(
        value, str | bool
    ):
        expected = "a number"
    elif isinstance(value, str | int | float) and _only_lists(parameter.annotation):
        expected = "a list"
    elif name in LEAST and number and value < LEAST[name]:
        expected = f"{LEAST[name]} or more"
    return f"{where}: {name} must be {expected}, not {value!r}" if expected else None


def _only_lists(annotation: Any) -> bool:
    """Whether an annotation such as "Sequence[int] | None" has room for a list or a tuple and nothing else."""
    text = annotation if isinstance(annotation, str) else str(annotation).replace("typing.", "")
    kinds = re.sub(r"\[[^\[\]]*\]", "", re.sub(r"\[[^\[\]]*\]", "", text)).replace("collections.abc.", "").split("|")
    named = {kind.strip() for kind in kinds} - {"None"}
    return bool(named) and named <= {"tuple", "list", "Sequence"}
