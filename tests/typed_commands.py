"""The commands that documents tell people to type, found where they stand.

A block of commands is a fenced block of ``sh``, ``bash``, ``shell`` or ``console``; in a config it is the lines of its
head that are indented by three blanks. Bash runs each block, with functions in the places of the programs that note
what they are called with: so loops, variables and quotes mean what they mean. Commands within a sentence are read too.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAMS = ("fbt", "python", "torchrun", "srun", "pip", "pytest", "ruff", "mypy", "mkdocs", "git", "apt")
LANGUAGES = ("sh", "bash", "shell", "console")
WRITTEN = ("coverage.md", "coverage_libraries.md", "report.md", "splice_ranking.md")
"""Pages that commands write: what stands there was typed once, and is no advice."""

_SETTING = re.compile(r"(?:export )?(?:\w+=\S*\s*)+$")
_STARTS = re.compile(rf"(?:[A-Z_]+=\S* )*(?:{'|'.join(PROGRAMS)}) \S")
_STAND_INS = "\n".join(
    [
        """note() { local word; for word in "${BASH_LINENO[1]}" "${FASHION_MNIST:+FASHION_MNIST}" "$@"; do""",
        """printf '%s\\x1f' "$word" >> "$LOG"; done; printf '\\x1e' >> "$LOG"; }""",
        *(f'{name}() {{ note {name} "$@"; }}' for name in PROGRAMS),
        'command_not_found_handle() { note "$@"; }',
        "cd() { :; }",
        "PATH=",
        "",
    ]
)


@dataclass(frozen=True)
class Typed:
    """A command.

    Attributes:
        where: file and line.
        words: the program and its arguments.
        around: what is said near it: of a block the paragraph above it, its comments so far, and a variable that says
            where data are; else the rest of the paragraph, or the head of the config.
        sentence: whether it stands within a sentence, where capitals and dots may stand for arguments.
    """

    where: str
    words: tuple[str, ...]
    around: str
    sentence: bool = False

    def __str__(self) -> str:
        return f"{self.where}: {shlex.join(self.words)}"


@cache
def typed_commands() -> list[Typed]:
    """Those of all documents."""
    return [command for path in _documents() for command in commands_of(path, str(path.relative_to(ROOT)))]


def untold() -> list[str]:
    """Blocks of another language, or of none, that begin with a command."""
    return [
        f"{path.relative_to(ROOT)}:{line}: {code[0]}"
        for path in _documents()
        if path.suffix == ".md"
        for line, language, code, _ in _blocks(path)
        if language not in LANGUAGES and code and _STARTS.match(code[0].removeprefix("$ "))
    ]


def _documents() -> Iterator[Path]:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "plugins").glob("*/README.md")]
    pages += (ROOT / "fbt_plugins").rglob("README.md")
    yield from (page for page in sorted(pages) if page.name not in WRITTEN)
    yield from sorted((ROOT / "configs").rglob("*.py"))


def commands_of(path: Path, name: str) -> Iterator[Typed]:
    """Those of a page or a config.

    Args:
        path: of the file.
        name: what it is called in ``where``.
    """
    if path.suffix == ".py":
        head = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        code = [line[4:] if line.startswith("#   ") else "" for line in head]
        if any(map(_STARTS.match, code)):
            about = " ".join(line for line in head if not line.startswith("#   "))
            yield from _run(name, 1, code, about)
        return
    settings: list[str] = []  # which hold in all blocks of a page
    for line, language, block, above in _blocks(path):
        if language in LANGUAGES:
            prompted = language == "console"
            block = [text.removeprefix("$ ") if not prompted or text.startswith("$ ") else "" for text in block]
            yield from _run(name, line, block, above, settings)
            settings += filter(_SETTING.match, block)
    for line, text in _paragraphs(path):
        for span in re.finditer(r"`([^`]+)`", text):
            if _STARTS.match(code := " ".join(span[1].split())):
                words = shlex.split(code)
                while "=" in words[0]:  # settings
                    words.pop(0)
                where = f"{name}:{line + text[: span.start()].count(chr(10))}"
                yield Typed(where, tuple(words), re.sub(r"`[^`]+`", "", text), sentence=True)


def _blocks(path: Path) -> Iterator[tuple[int, str, list[str], str]]:
    """Of a page: the line before a fenced block's first, its language, its lines, and the paragraph above it."""
    opened: tuple[int, str, str] | None = None
    block: list[str] = []
    paragraph = last = ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if match := re.match(r"\s*```\s*(\w*)", line):
            if opened is None:
                opened, block = (number, match[1], paragraph or last), []
            else:
                yield opened[0], opened[1], block, opened[2]
                opened, paragraph, last = None, "", ""
        elif opened:
            block.append(line.strip())
        elif line.strip():
            paragraph += "" if line.startswith("|") else f" {line}"
        else:
            paragraph, last = "", paragraph or last


def _paragraphs(path: Path) -> Iterator[tuple[int, str]]:
    """The paragraphs of a page, and the rows of its tables, each with the number of its first line; no blocks."""
    inside, paragraph = False, ""
    lines = [*path.read_text(encoding="utf-8").splitlines(), ""]
    for number, line in enumerate(lines, 1):
        fence = bool(re.match(r"\s*```", line))
        if paragraph and (fence or not line.strip() or line.startswith("|")):
            yield number - paragraph.count("\n"), paragraph
            paragraph = ""
        inside ^= fence
        if line.strip() and not inside and not fence:
            paragraph += f"{line}\n"


def _run(name: str, before: int, block: list[str], around: str, settings: Sequence[str] = ()) -> Iterator[Typed]:
    """What the programs of a block are called with."""
    script = _STAND_INS + "\n".join([*settings, *block])
    first = _STAND_INS.count("\n") + len(settings)
    with subprocess.Popen(
        ["/bin/bash", "--norc", "--noprofile", "-c", 'exec 3>&1; LOG=/dev/fd/3; eval "$0" >&2', script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        env={"HOME": "/home/user"},
    ) as process:
        found, errors = process.communicate()
    if "syntax error" in errors:
        raise AssertionError(f"{name}:{before}: {errors}")
    for record in found.split("\x1e")[:-1]:
        number, data, *words = record.split("\x1f")[:-1]
        line = int(number) - first
        notes = " ".join(text.partition("#")[2] for text in block[:line])
        shown = line + (before if name.endswith(".md") else 0)
        yield Typed(f"{name}:{shown}", tuple(words), " ".join((around, notes, data)))
