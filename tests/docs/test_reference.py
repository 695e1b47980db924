"""The reference pages say what the code says."""

from __future__ import annotations

import inspect
import pkgutil
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

import fbt_plugins
from fbt_plugins import authoring, testing
from fbt_plugins.registry.loading import load_plugins
from fbt_plugins.registry.registries import PluginRegistry

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """What the generator makes of the code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])
        made: dict[str, str] = runpy.run_path(str(REFERENCE / "make.py"))["pages"]()
    return made


@pytest.mark.parametrize("name", ["config.md", "commands.md"])
def test_a_page_is_what_its_generator_makes(name: str, pages: dict[str, str]) -> None:
    assert (REFERENCE / name).read_text(encoding="utf-8") == pages[name], "run: python docs/reference/make.py"


def test_the_api_page_has_all_that_is_public() -> None:
    page = (REFERENCE / "api.md").read_text(encoding="utf-8")
    named = set(re.findall(r"[\w.]*?(\w+)$|`(\w+)`", page, re.MULTILINE))
    known = {name for pair in named for name in pair}
    public = {*fbt_plugins.__all__, *authoring.__all__, *testing.__all__}
    registries = load_plugins().registries
    parts = {part.__name__ for registry in (registries.fusions, registries.losses) for part in _own(registry)}
    assert not {*public, *parts} - known


def test_the_guide_for_authors_has_a_line_for_all_that_is_public() -> None:
    page = (REFERENCE.parent / "guides" / "plugins.md").read_text(encoding="utf-8")
    for package in (fbt_plugins, authoring):
        table = page.partition(f"| `from {package.__name__} import` |")[2].partition("\n\n")[0]
        assert not [name for name in package.__all__ if f"`{name}`" not in table]


def _own(registry: PluginRegistry) -> list[Any]:
    return [
        part
        for name, part in registry.module_dict.items()
        if (owner := registry.owners.get(name)) and owner.distribution == "fbt-plugins"
    ]


def test_what_the_api_page_names_is_there() -> None:
    for path in re.findall(r"^::: (\S+)$", (REFERENCE / "api.md").read_text(encoding="utf-8"), re.MULTILINE):
        thing = pkgutil.resolve_name(path)
        assert inspect.getdoc(thing), path


def test_a_key_that_nobody_describes_stops_the_generator(
    pages: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page, texts = sys.modules["config_page"], sys.modules["config_texts"]
    without = {key: about for key, about in texts.LOADER.items() if key != "in_memory"}
    monkeypatch.setattr(texts, "LOADER", without)  # an item that is deleted comes back as the last, in later tests too
    with pytest.raises(SystemExit, match="keys of a loader: in_memory"):
        page.config_page()
    monkeypatch.undo()
    monkeypatch.setattr(page, "_rows", lambda thing: iter([("new", ("int", "`1`", ""))]))
    with pytest.raises(SystemExit, match="new: no docstring says what it is"):
        page.config_page()


DOCSTRING = """A thing.

Args:
    a, b: numbers of :class:`some.Thing`,
        and more.
    c: ``other``.

Attributes:
    d: known.
"""


def test_docstrings_are_read(pages: dict[str, str]) -> None:
    docstrings = sys.modules["docstrings"]
    thing = type("Thing", (), {"__doc__": DOCSTRING, "__module__": "elsewhere"})
    numbers = "numbers of :class:`some.Thing`, and more."
    assert docstrings.described(thing) == ("A thing.", {"a": numbers, "b": numbers, "c": "``other``.", "d": "known."})
    assert docstrings.plain(f"{numbers} ``other``") == "numbers of `Thing`, and more. `other`"
    apart = docstrings.one_a_name(DOCSTRING)
    assert (
        "    a: numbers of :class:`some.Thing`,\n        and more.\n    b: numbers of" in apart and "a, b" not in apart
    )
    assert docstrings.described(type("Thing", (), {"__doc__": apart})) == docstrings.described(thing)
