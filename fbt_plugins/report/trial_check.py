"""What a line of a ``trials.jsonl`` must hold: it may come from another machine, a database or an editor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

from ..errors import is_name, short


def problem_of(values: Mapping[str, Any]) -> str | None:
    """The first thing that is wrong with a trial's fields, in words; None where all are what they should be."""
    for key, (fits, expected) in _FIELDS.items():
        if key not in values:
            return f"it has no {key!r}"
        if not fits(values[key]):
            return f"{key}: expected {expected}, got {short(values[key])}"
    if not _maps(values.get("cka")):
        return "cka: expected maps of numbers with the names of their rows and columns"
    return None


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _whole(value: Any) -> bool:
    return type(value) is int


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _numbers(value: Any, *needed: str) -> bool:
    return isinstance(value, dict) and all(map(_number, value.values())) and set(needed) <= value.keys()


def _curve(value: Any) -> bool:
    return isinstance(value, list) and all(_numbers(point, "epoch", "student") for point in value)


def _published(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and _number(value.get("top1")) and _text(value.get("source")))


def _about_run(value: Any) -> bool:
    if not isinstance(value, dict) or not (value.get("seconds") is None or _number(value["seconds"])):
        return False
    versions, git = value.get("versions") or {}, value.get("git") or {}
    return isinstance(versions, dict) and isinstance(git, dict) and (not git or "commit" in git)


def _maps(value: Any) -> bool:
    if not value:
        return value is None or value == {}
    maps = value.get("maps") if isinstance(value, dict) else None
    return isinstance(maps, dict) and _whole(value.get("images")) and all(map(_map, maps.values()))


def _map(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    parts = [value.get(key) for key in ("models", "rows", "columns")]
    if not all(isinstance(names, list) and names and all(map(_text, names)) for names in parts):
        return False
    lines = value.get("values")
    return isinstance(lines, list) and len(lines) == len(value["rows"]) and all(_line(v, value) for v in lines)


def _line(line: Any, of: Mapping[str, Any]) -> bool:
    return isinstance(line, list) and len(line) == len(of["columns"]) and all(v is None or _number(v) for v in line)


_NAME = (is_name, "a name that can be a folder's")
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "pair": _NAME,
    "method": _NAME,
    "seed": (_whole, "a whole number"),
    "about": (_text, "text"),
    "top1": (lambda value: _numbers(value, "student"), "numbers by model, the student's among them"),
    "split": (_text, "text"),
    "images": (lambda value: value is None or (_number(value) and value > 0), "a number above 0, or null"),
    "curve": (_curve, "a list of points, each with numbers for epoch and student"),
    "reference": (_published, "null, or a figure (top1) and its source"),
    "config": (_text, "text"),
    "hardware": (_text, "text"),
    "about_run": (_about_run, "an object with seconds, versions and git"),
}
