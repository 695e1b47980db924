"""Writes config.md and commands.md from the code: `python docs/reference/make.py`, or `--check` to compare only."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]

from config_page import config_page  # noqa: E402 - found beside this file
from docstrings import plain  # noqa: E402

from fbt_plugins.commands import MODULES, parser_of  # noqa: E402
from fbt_plugins.errors import TOOLS_FOLDER  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a page differs")
    check = parser.parse_args().check
    stale = [name for name, text in pages().items() if not _same(HERE / name, text, check)]
    for name in stale:
        print(f"{'differs' if check else 'written'}  docs/reference/{name}")
    return int(check and bool(stale))


def pages() -> dict[str, str]:
    """The text of each page, by its file's name."""
    os.environ.pop(TOOLS_FOLDER, None)  # else examples are of tools/NAME.py
    before = Path.cwd()
    os.chdir(ROOT)  # examples name configs of this clone
    try:
        return {"config.md": config_page(), "commands.md": "\n".join(_commands())}
    finally:
        os.chdir(before)


def _same(path: Path, text: str, check: bool) -> bool:
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return True
    if not check:
        path.write_text(text, encoding="utf-8")
    return False


def _commands() -> Iterator[str]:
    yield "<!-- made by docs/reference/make.py from the parsers of fbt_plugins/commands: do not edit -->"
    yield "# Commands\n"
    yield "Every command of `fbt`, with its arguments and examples. `fbt COMMAND --help` shows the same.\n"
    yield "In a clone, `python tools/NAME.py` is the same as `fbt NAME`. A mistake gets one line and exit code 2.\n"
    yield "| Command | What it does |\n|---|---|"
    parsers = {name: parser_of(name) for name in MODULES}
    for name, parser in parsers.items():
        yield f"| [`fbt {name}`](#fbt-{name}) | {plain(parser.description or '')} |"
    for name, parser in parsers.items():
        yield f"\n## fbt {name}\n\n{plain(parser.description or '')}\n"
        yield "| Argument | Effect |\n|---|---|"
        yield from (_row(action) for action in parser._actions if action.help and action.dest != "help")
        yield from _epilog(parser.epilog or "")
    yield ""


def _row(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else action.metavar or (None if action.choices else action.dest.upper())
    if value is None:
        value = "{" + ",".join(map(str, action.choices or ())) + "}"
    if action.nargs == "+":
        value = f"{value} ..."
    elif action.nargs == "?":
        value = f"[{value}]"
    names = ", ".join(action.option_strings) or action.metavar or action.dest
    shown = f"{names} {value}" if action.option_strings else f"{names}{' ...' * (action.nargs == '+')}"
    text = (action.help or "").replace("%(default)s", str(action.default))
    required = " Required." if action.required and action.option_strings else ""
    return f"| `{shown.strip()}` | {_cell(_sentence(plain(text)))}{required} |"


def _epilog(text: str) -> Iterator[str]:
    """Examples as a block of code, and what is written after them as text."""
    examples, _, rest = text.strip().partition("\n\n")
    lines = examples.splitlines()[1:]
    yield "\n```sh\n" + "\n".join(line.removeprefix("  ") for line in lines) + "\n```"
    if rest:
        yield f"\n{rest.strip()}"


def _sentence(text: str) -> str:
    return text if text.endswith((".", ")")) else f"{text}."


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


if __name__ == "__main__":
    raise SystemExit(main())
