"""What a callable takes, read off its signature, and a config's arguments held against it, without a call."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, MutableSequence, Sequence
from inspect import Parameter
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..errors import as_number, is_number, nearest


def parameters_of(factory: Callable[..., Any], follow: bool = False) -> tuple[dict[str, Parameter], bool]:
    """What a callable accepts by name.

    Args:
        factory: a class or a function.
        follow: whether a class that takes ``**kwargs`` passes them on to its base class.

    Returns:
        The parameters, whose annotations are types (empty where they cannot be resolved), and whether that is all.
    """
    mro = inspect.getmro(factory) if follow and inspect.isclass(factory) else ()
    steps: list[Callable[..., Any]] = [vars(c)["__init__"] for c in mro if "__init__" in vars(c)] or [factory]
    accepted: dict[str, Parameter] = {}
    for step in steps:
        try:
            parameters = list(inspect.signature(step).parameters.values())
        except (TypeError, ValueError):  # built-in classes have no signature
            return accepted, False
        namespace = _namespace(step)
        for p in parameters[1:] if mro else parameters:
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in accepted:
                # What a base class requires, the class itself may provide.
                default = p.default if step is steps[0] or p.default is not p.empty else None
                accepted[p.name] = p.replace(default=default, annotation=_type(p.annotation, namespace))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return accepted, True
    return accepted, False


def argument_problems(
    factory: Callable[..., Any], arguments: Mapping[str, Any], where: str, also: Iterable[str] = ()
) -> list[str]:
    """Holds arguments against a signature without calling it.

    Args:
        factory: the class or function that would be called.
        arguments: its keyword arguments.
        where: what the lines begin with, a config key or a type.
        also: what its config may say besides, that somebody else reads; only to be proposed.

    Returns:
        One line for each argument that is unknown, missing, or of another type.
    """
    accepted, complete = parameters_of(factory)
    unknown = [a for a in arguments if a not in accepted] if complete else []
    problems = [f"{where}: no argument {a!r}{nearest(a, [*accepted, *also], limit=12)}" for a in unknown]
    for name, parameter in accepted.items():
        if name in arguments:
            problem = value_problem(where, parameter, arguments[name])
            problems += [problem] if problem else []
    missing = [n for n, p in accepted.items() if p.default is p.empty and n not in arguments]
    return problems + [f"{where}: argument {n!r} is missing" for n in missing]


LEAST = {
    **dict.fromkeys(("max_epochs", "max_iters", "val_interval", "interval", "batch_size", "input_size", "img_size"), 1),
    "num_workers": 0,
    "prefetch_factor": 1,
    "timeout": 0,
}
"""The smallest values of arguments that mean the same wherever they occur."""


def value_problem(where: str, parameter: Parameter, value: Any) -> str | None:
    """Holds a value against what its parameter's type, or its default, says it is.

    Only what a config can hold is judged (no tensors, no models), and only where one thing is expected: a truth value,
    a number, or a list. A type that says more than that, or nothing at all, leaves it to the default.

    Args:
        where: what the line begins with.
        parameter: of the function that would get it, as :func:`parameters_of` gives it.
        value: the value.

    Returns:
        One line if it is of another type, or too small; else None.
    """
    default, name = parameter.default, parameter.name
    if value is None or value is default:
        return None
    kinds = _kinds(parameter.annotation)
    expected = None
    if not any(_fits(kind, value) for kind in kinds):
        kind = _expected(kinds, default)
        expected = _WORDS[kind] if kind and isinstance(value, _NEVER[kind]) and not _fits(kind, value) else None
    if expected is None and is_number(value) and value < LEAST.get(name, value):
        expected = f"{LEAST[name]} or more"
    return f"{where}: {name} must be {expected}, not {as_number(value)}" if expected else None


_WORDS: dict[Any, str] = {bool: "True or False", int: "a whole number", float: "a number", list: "a list"}
_NEVER: dict[Any, tuple[type, ...]] = {
    bool: (str, int, float, list, tuple, dict),
    int: (str, int, float, list, tuple, dict),
    float: (str, bool),
    list: (str, int, float),
}
"""What is certainly no such value; of the rest, who gets it may make one."""


def _expected(kinds: set[Any], default: Any) -> Any:
    """The one kind of value that types say, or else a default; None where they say nothing, or leave a choice."""
    if len(kinds) == 1 and kinds <= _WORDS.keys():
        return next(iter(kinds))
    if kinds == {int, float}:
        return float
    return next((kind for kind, of in ((bool, bool), (float, int | float)) if isinstance(default, of)), None)


def _kinds(annotation: Any) -> set[Any]:
    """Of which types a value may be, None aside: ``list`` for lists, tuples and sequences of whatever."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        return set[Any]().union(*map(_kinds, get_args(annotation)))
    if origin is Literal:
        return {type(value) for value in get_args(annotation)} - {NoneType}
    if annotation is Parameter.empty or annotation is NoneType:
        return set()
    kind = origin or annotation
    return {list} if kind in (list, tuple, Sequence, MutableSequence) else {kind}


def _fits(kind: Any, value: Any) -> bool:
    """Whether a value is of a kind."""
    if kind in (Any, object):
        return True
    if kind in (int, float):
        return is_number(value) and (kind is float or value % 1 == 0)
    if kind is list:
        return isinstance(value, list | tuple)
    try:
        return isinstance(value, kind)
    except TypeError:  # a protocol, or no class at all
        return False


def _type(annotation: Any, namespace: dict[str, Any]) -> Any:
    """The type that an annotation means; empty where that cannot be known."""

    def holder() -> None: ...

    holder.__annotations__ = {"value": annotation}
    try:
        hint = get_type_hints(holder, namespace)["value"]
        hash(hint)  # some write a list there
        return hint
    except Exception:  # a name that is there for type checkers only, or whatever else somebody's annotation does
        return Parameter.empty


def _namespace(factory: Any) -> dict[str, Any]:
    """Where the names in a callable's annotations are found."""
    while isinstance(factory, functools.partial):
        factory = factory.func
    if inspect.isclass(factory):
        factory = factory.__init__ if inspect.isfunction(factory.__init__) else factory.__new__
    elif not inspect.isroutine(factory):
        factory = type(factory).__call__
    return getattr(inspect.unwrap(factory), "__globals__", {})
