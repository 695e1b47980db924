"""The registries, and arguments held against signatures."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pytest
import torch

from fbt_plugins.errors import ConfigError, PluginError, UnknownNameError
from fbt_plugins.registry.registries import PluginFailure, PluginInfo, PluginRegistry
from fbt_plugins.registry.signatures import argument_problems, parameters_of


class Thing:
    def __init__(self, size: int, colour: str = "red", sides: tuple[int, ...] | None = None) -> None:
        if size < 0:
            raise ValueError("size must be 0 or more")
        self.size, self.colour = size, colour


@pytest.fixture
def registry() -> PluginRegistry:
    registry = PluginRegistry("thing")
    registry.register_module(module=Thing)
    return registry


def test_builds_by_name(registry: PluginRegistry) -> None:
    assert registry.build(dict(type="Thing", size=3)).size == 3


def test_unknown_names_answer_with_the_nearest_and_with_what_failed_to_load(registry: PluginRegistry) -> None:
    registry.failures = [PluginFailure("extra", "fbt-extra", "2.1", "ModuleNotFoundError: no module named 'zzz'")]
    with pytest.raises(UnknownNameError, match=r"'Thng'.*did you mean 'Thing'\?.*extra.*fbt-extra 2.1.*zzz"):
        registry.build(dict(type="Thng", size=1))


def test_dotted_paths_reach_nothing(registry: PluginRegistry) -> None:
    with pytest.raises(UnknownNameError, match="dotted import paths are not accepted"):
        registry.build(dict(type="subprocess.run", args=["true"]))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (dict(type="Thing", sise=3), "no argument 'sise'; did you mean 'size'"),
        (dict(type="Thing"), "'size' is missing"),
        (dict(type="Thing", size=-1), "Thing: size must be 0 or more"),
        (dict(type="Thing", size=1, sides="abc"), "Thing: sides must be a list, not 'abc'"),
        (dict(type="Thing", size=1, sides=3), "Thing: sides must be a list, not 3"),
        (dict(size=1), "expected a dict with a 'type'"),
        ("Thing", "expected a dict with a 'type'"),
    ],
)
def test_wrong_arguments_are_config_errors(registry: PluginRegistry, config: object, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        registry.build(config)  # type: ignore[arg-type]


def test_a_taken_name_is_refused(registry: PluginRegistry) -> None:
    with pytest.raises(KeyError):
        registry.register_module(name="Thing", module=dict)


def test_what_a_plugin_raises_comes_with_its_place(registry: PluginRegistry) -> None:
    def broken() -> None:
        [][3]

    registry.register_module(name="Broken", module=broken)
    registry.owners["Broken"] = PluginInfo("own", module=__name__)
    with pytest.raises(PluginError, match=r"raised IndexError: .* in .*broken \(test_registries.py:\d+"):
        registry.build(dict(type="Broken"))


# ---- signatures -----------------------------------------------------------------------------------------------------


if TYPE_CHECKING:
    from nowhere import Unknown


class Shape(Protocol):
    sides: int


def thing(  # type: ignore[no-untyped-def]
    flag: bool = False,
    maybe: bool | None = None,
    count: int = 1,
    limit: int | None = None,
    rate: float = 0.5,
    scale: float | None = None,
    sizes: Sequence[int] | None = None,
    betas: tuple[float, float] = (0.9, 0.99),
    either: int | Sequence[int] = 3,
    lr: float | torch.Tensor = 1e-3,
    weights: bool | str = True,
    how: float | Literal["auto"] = 0.1,
    file: Path | None = None,
    words: str = "x",
    anything: Any = 1,
    odd: Unknown = 2,
    shape: Shape | None = None,
    untyped=True,
    number=3,
    interval: int = 5,
) -> None: ...


REFUSED: list[tuple[str, Any, str]] = [
    ("flag", 1, "True or False"),
    ("flag", [], "True or False"),
    ("maybe", "yes", "True or False"),
    ("count", 1.5, "a whole number"),
    ("count", True, "a whole number"),
    ("count", [1], "a whole number"),
    ("limit", "many", "a whole number"),
    ("limit", float("inf"), "a whole number"),
    ("rate", "high", "a number"),
    ("rate", True, "a number"),
    ("scale", "big", "a number"),
    ("sizes", "123", "a list"),
    ("sizes", 3, "a list"),
    ("betas", 0.9, "a list"),
    ("either", "x", "a number"),
    ("lr", "fast", "a number"),
    ("weights", 3, "True or False"),
    ("how", False, "a number"),
    ("odd", "x", "a number"),
    ("untyped", "x", "True or False"),
    ("number", "x", "a number"),
    ("interval", 0, "1 or more"),
]
TAKEN: list[tuple[str, list[Any]]] = [
    ("flag", [True, None]),
    ("maybe", [False, None]),
    ("count", [2.0]),
    ("limit", [3, None]),
    ("rate", [1]),
    ("scale", [2, torch.ones(1)]),
    ("sizes", [(1, 2), [1], []]),
    ("betas", [[0.1, 0.2]]),
    ("either", [[1], 2]),
    ("lr", [torch.ones(1), 1]),
    ("weights", ["imagenet", False]),
    ("how", ["auto", 1]),
    ("file", ["a/path", Path("a/path")]),
    ("words", [3]),
    ("anything", ["x", 2, []]),
    ("odd", [2.5]),
    ("shape", [3, "x"]),
    ("number", [2.5]),
    ("interval", [1]),
]


@pytest.mark.parametrize(("name", "value", "expected"), REFUSED)
def test_what_is_certainly_of_another_type_is_refused(name: str, value: Any, expected: str) -> None:
    assert argument_problems(thing, {name: value}, "Thing") == [f"Thing: {name} must be {expected}, not {value!r}"]


@pytest.mark.parametrize(("name", "values"), TAKEN)
def test_what_may_be_right_is_not(name: str, values: list[Any]) -> None:
    for value in values:
        assert argument_problems(thing, {name: value}, "Thing") == []


def test_unknown_and_missing_arguments_are_named() -> None:
    def made(size: int, colour: str = "red") -> None: ...

    assert argument_problems(made, {"colur": "blue"}, "Made") == [
        "Made: no argument 'colur'; did you mean 'colour'?",
        "Made: argument 'size' is missing",
    ]


class Base:
    def __init__(self, size: int, depth: int = 2) -> None: ...


class Derived(Base):
    def __init__(self, rate: float, **kwargs: Any) -> None: ...


@dataclass
class Data:
    limit: int | None


class Called:
    def __call__(self, limit: int | None) -> None: ...


def test_a_class_that_passes_on_what_it_gets_is_followed_where_that_is_asked() -> None:
    own, complete = parameters_of(Derived)
    assert list(own) == ["rate"] and not complete
    followed, complete = parameters_of(Derived, follow=True)
    assert list(followed) == ["rate", "size", "depth"] and complete
    assert (
        followed["rate"].default is followed["rate"].empty and followed["size"].default is None
    )  # Derived may give it
    assert [p.annotation for p in followed.values()] == [float, int, int]


@pytest.mark.parametrize(
    "factory", [Data, Called(), functools.partial(thing, rate=1)], ids=["data", "object", "partial"]
)
def test_types_are_found_wherever_a_signature_comes_from(factory: Callable[..., Any]) -> None:
    assert argument_problems(factory, {"limit": "x"}, "It") == ["It: limit must be a whole number, not 'x'"]


def test_an_annotation_that_is_no_type_is_left_alone() -> None:
    def odd(a=None, b=None, c=None, d=None) -> None: ...  # type: ignore[no-untyped-def]

    odd.__annotations__ |= {"a": "this is no type", "b": [int], "c": 3, "d": "int | None"}
    assert argument_problems(odd, dict(a="x", b="x", c="x"), "It") == []
    assert argument_problems(odd, dict(d="x"), "It") == ["It: d must be a whole number, not 'x'"]


def test_what_has_no_signature_takes_anything() -> None:
    assert argument_problems(dict, {"a": 1}, "dict") == [] and parameters_of(dict) == ({}, False)
