"""What a user got wrong, in words a user can act on; and what a user types."""

from __future__ import annotations

import difflib
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NoReturn

TOOLS = {
    "train": "train.py",
    "compare": "compare.py",
    "search": "search.py",
    "choose": "choose.py",
    "test": "test.py",
    "predict": "predict.py",
    "export": "export.py",
    "benchmark": "benchmark.py",
    "inspect": "inspect_model.py",
    "plugins": "list_plugins.py",
    "new-plugin": "new_plugin.py",
    "rank-splices": "rank_splices.py",
}
"""Commands of ``fbt`` that a clone has in ``tools`` too, each with its file there; its module is called the same."""

TOOLS_FOLDER = "FBT_TOOLS"
"""Environment variable with the folder of such a file, as it was typed, where one was started; processes inherit it."""


class FBTError(Exception):
    """A mistake outside the program (config, file, device, plugin): one clear line, exit code 2, no traceback."""

    exit_code = 2
    prefix = "error: "

    def lines(self) -> list[str]:
        """What a user reads; an error that a data worker raised comes wrapped in that worker's traceback."""
        lines = str(self).splitlines()
        if any(line.startswith("Original Traceback") for line in lines):
            return [lines[-1].partition(f"{type(self).__name__}: ")[2]]
        return lines


class Interrupted(FBTError):
    """A run was told to stop and has saved what it had.

    Args:
        line: what a user reads.
        signal: number of the signal; shells expect 128 more than it as exit code.
    """

    prefix = ""

    def __init__(self, line: str, signal: int) -> None:
        super().__init__(line)
        self.exit_code = 128 + signal


class ConfigError(FBTError):
    """One or more things that are wrong with a config, all of them reported together.

    Args:
        problems: one line each, that says what is wrong, where, and what would be right.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class UnknownNameError(FBTError, KeyError):
    """A name that no registry, model library or config knows."""

    __str__ = Exception.__str__  # KeyError would print the repr, quotes and all


class TakenNameError(FBTError, KeyError):
    """A name that a registry has already."""

    __str__ = Exception.__str__


class PluginError(FBTError):
    """A plugin did not do what its kind promises: the line names it, its distribution and version, and a way out."""


class PartError(FBTError):
    """A third party's part gives something else than its kind does; a registry that knows whose it is says so.

    Args:
        name: of the model, for whoever built it by hand.
        what: it does wrong, as the rest of a sentence.
    """

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"{name} {what}")
        self.what = what


def typed(line: str, *arguments: str) -> str:
    """What one types here for ``line``: the same, or ``python tools/NAME.py`` where the program was started like that.

    Args:
        line: one line or many with commands of ours, such as "fbt train CONFIG".
        arguments: of the command, to be quoted where a shell needs it.
    """
    folder = os.environ.get(TOOLS_FOLDER)

    def tool(match: re.Match[str]) -> str:  # torchrun puts python before a file itself
        return ("" if match[1] else "python ") + shlex.quote(f"{folder}/{TOOLS[match[2]]}")

    if folder is not None:
        line = re.sub(rf"(--no-python )?(?<![^\s'])fbt ({'|'.join(TOOLS)})(?![\w-])", tool, line)
    return " ".join([line, *map(shlex.quote, arguments)])


def user_path(text: str | Path) -> Path:
    """A path as a user gave it; a shell leaves the "~" of ``--out=~/x`` or ``'~/x'`` to us.

    Raises:
        FBTError: if it is the home of a user who is not there.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise FBTError(f"{text}: there is no such user") from None


def debugging() -> bool:
    """Whether ``FBT_DEBUG=1`` asks for tracebacks."""
    return os.environ.get("FBT_DEBUG") == "1"


def nearest(name: object, known: Iterable[str], limit: int = 8) -> str:
    """The end of an error line: the names that ``name`` may have meant, or all of them where they are few.

    Args:
        name: what was asked for.
        known: the names that exist.
        limit: how many names are still listed whole when none is near.

    Returns:
        ``"; did you mean 'a' or 'b'?"``, ``"; known: a, b, c"``, or an empty string.
    """
    names = sorted(known)
    lower = {n.lower(): n for n in reversed(names)}
    asked = str(name).lower()
    begun = [n for n in lower if len(asked) > 2 and n.startswith(asked)]  # shortened, which is far in letters
    near = dict.fromkeys(begun + difflib.get_close_matches(asked, list(lower), n=3, cutoff=0.6))
    if close := [lower[n] for n in near][:3]:
        return "; did you mean " + " or ".join(repr(n) for n in close) + "?"
    if names and len(names) <= limit:
        return "; known: " + ", ".join(names)
    return ""


def short(value: object) -> str:
    """A value in an error line: its type, and its text where that is short."""
    text = " ".join(repr(value).split())
    return f"{type(value).__name__} {text}" if value is not None and len(text) < 40 else type(value).__name__


def is_name(value: object) -> bool:
    """Whether a value can be a folder's name, and no more than that: nothing with it leaves the folder it is put in."""
    return isinstance(value, str) and value not in ("", ".", "..") and not re.search(r"[/\\\x00-\x1f\x7f]", value)


def described(error: BaseException) -> str:
    """An exception with its type and message on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")


def one_line(error: BaseException) -> str:
    """An exception's message on one line, with its type where the message alone says little."""
    text = " ".join(str(error).split())
    return text if isinstance(error, FBTError | ValueError) and text else f"{type(error).__name__}: {text}"


def run(main: Callable[[], int | None]) -> NoReturn:
    """Runs a tool: user errors are one line each and exit code 2; ``FBT_DEBUG=1`` shows where they came from."""
    try:
        code = main()
    except FBTError as error:
        if debugging():
            raise
        for line in error.lines():
            print(f"{error.prefix}{line}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        sys.stderr.close()
        code = 0
    sys.exit(code or 0)
