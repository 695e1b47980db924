"""Reads docstrings: what each argument is, as Markdown."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

_ROLE = re.compile(r":\w+:`~?!?([^`]+)`")
_SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Yields):$")
_ENTRY = re.compile(r"    (\w[\w, ]*?): (.*)")


def plain(text: str) -> str:
    """A docstring's text as Markdown: ``:class:`a.Name` `` is `Name`, and two backticks are one."""
    text = _ROLE.sub(lambda match: f"`{match[1].rpartition('.')[2]}`", text)
    return re.sub(r"``([^`]+)``", r"`\1`", text)


def described(thing: Any) -> tuple[str, dict[str, str]]:
    """What a class or a function is, and what each of its arguments is.

    Args:
        thing: whose docstring has them under "Args:", or under "Attributes:" where it is a dataclass.

    Returns:
        The text before the first section, and the arguments' texts by name; a class's base classes add theirs.
    """
    about, known = _read(inspect.getdoc(thing) or "")
    for base in inspect.getmro(thing)[1:] if inspect.isclass(thing) else ():
        if base.__module__.startswith("fbt"):
            known = _read((base.__doc__ and inspect.cleandoc(base.__doc__)) or "")[1] | known
    return about, known


def _read(doc: str) -> tuple[str, dict[str, str]]:
    about: list[str] = []
    entries: dict[str, list[str]] = {}
    section, names = "", ()
    for line in doc.splitlines():
        if match := _SECTION.match(line):
            section = match[1]
        elif line and not line.startswith(" ") and section:
            section = "rest"
        elif not section:
            about.append(line)
        elif section in ("Args", "Attributes"):
            if entry := _ENTRY.match(line):
                names = tuple(name for name in entry[1].split(", ") if section == "Args" or name not in entries)
                entries |= {name: [entry[2]] for name in names}
            else:
                for name in names:
                    entries[name].append(line.strip())
    return "\n".join(about).strip(), {name: " ".join(lines).strip() for name, lines in entries.items()}


def one_a_name(doc: str) -> str:
    """A docstring in which ``a, b: text`` is ``a: text`` and ``b: text``, for tools that know one name a line."""
    lines: list[str] = []
    shared: list[list[str]] = []
    for line in [*doc.splitlines(), ""]:
        entry = _ENTRY.match(line)
        if shared and not line.startswith("     "):
            for more in shared[1:]:
                lines += more
            shared = []
        if entry and ", " in entry[1]:
            shared = [[f"    {name}: {entry[2]}"] for name in entry[1].split(", ")]
            lines += shared[0]
            continue
        if shared:
            lines.append(line)
            for more in shared[1:]:
                more.append(line)
            continue
        lines.append(line)
    return "\n".join(lines[:-1])


def summary(thing: Callable[..., Any]) -> str:
    """The first paragraph of a docstring, on one line."""
    return plain(" ".join(described(thing)[0].split("\n\n")[0].split()))
