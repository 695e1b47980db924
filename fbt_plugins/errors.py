"""What a user got wrong, in words a user can act on; and what a user types."""

from __future__ import annotations

import difflib
import os
import re
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

TOOLS = {
    "distill": "distill.py",
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


class Told(KeyboardInterrupt):
    """A signal told the program to end; no FBTError, so that nothing that expects mistakes takes it for one.

    Args:
        signal: its number.
    """

    def __init__(self, signal: int) -> None:
        super().__init__()
        self.signal = signal


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
    if asked in lower:  # written otherwise
        return f"; did you mean {lower[asked]!r}?"
    begun = [n for n in lower if len(asked) > 2 and n.startswith(asked)]  # shortened, which is far in letters
    near = dict.fromkeys(begun + difflib.get_close_matches(asked, list(lower), n=3, cutoff=0.6))
    if close := [lower[n] for n in near][:3]:
        return "; did you mean " + " or ".join(repr(n) for n in close) + "?"
    if names and len(names) <= limit:
        return "; known: " + ", ".join(names)
    return ""


def by_name(problems: Mapping[str, Iterable[str]]) -> list[str]:
    """What is wrong with many things, each line once: after the first that has it, and how many more have it.

    Args:
        problems: lines by name; after the name "" they stay as they are.
    """
    names: dict[str, list[str]] = {}
    for name, lines in problems.items():
        for line in dict.fromkeys(lines):
            names.setdefault(line, []).append(name)
    return [
        f"{own[0]}{f' and {len(own) - 1} more' if own[1:] else ''}: {line}" if own[0] else line
        for line, own in names.items()
    ]


def as_number(value: object) -> str:
    """A value in a line that asks for a number: YAML takes ``1e-3``, without a point, for text."""
    if isinstance(value, str) and (found := re.fullmatch(r"([-+]?\d+)([eE][-+]?\d+)", value)):
        return f"{value!r}, which is text (in YAML write {found[1]}.0{found[2]})"
    return repr(value)


def text_of(value: object, how: Callable[[object], str] = str) -> str:
    """The text of an exception or another object on one line; somebody's own method makes it, and may fail."""
    try:
        return " ".join(how(value).split())
    except Exception as error:
        return f"(its own text cannot be made: {type(error).__name__})"


def short(value: object) -> str:
    """A value in an error line: its type, and its text where that is short."""
    text = text_of(value, repr)
    return f"{type(value).__name__} {text}" if value is not None and len(text) < 40 else type(value).__name__


def repeated(values: Iterable[object]) -> list[Any]:
    """What is there more than once, each once; lists and dicts are looked at too."""
    seen: list[Any] = []
    twice: list[Any] = []
    for value in values:
        into = seen if value not in seen else twice
        if value not in into:
            into.append(value)
    return twice


def is_name(value: object) -> bool:
    """Whether a value can be a folder's name, and no more than that: nothing with it leaves the folder it is put in."""
    return isinstance(value, str) and value not in ("", ".", "..") and not re.search(r"[/\\\x00-\x1f\x7f]", value)


def is_number(value: object) -> bool:
    """Whether a value is a finite number, and no truth value; JSON has whole numbers that no float can be."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_count(value: object, least: int = 1) -> bool:
    """Whether a value is a whole number from ``least``, and no truth value; numpy's are numbers too."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def described(error: BaseException) -> str:
    """An exception with its type and message on one line."""
    return f"{type(error).__name__}: {text_of(error)}".rstrip(": ")


def one_line(error: BaseException) -> str:
    """An exception's message on one line, with its type where the message alone says little."""
    text = text_of(error)
    return text if isinstance(error, FBTError | ValueError) and text else f"{type(error).__name__}: {text}"


def _not_ours(error: SystemExit) -> str | None:
    """Where somebody else's code ends the program; None if it was ours, or argparse for us."""
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    module = str(frame.f_globals.get("__name__", ""))
    if module.partition(".")[0] in (__package__, "argparse"):
        return None
    return f"in {module}.{frame.f_code.co_qualname} ({Path(frame.f_code.co_filename).name}:{line})"


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
"""What schedulers, users, ``sbatch --signal=USR1@60`` and a terminal that is closed send."""

SAME_SIGNAL = 0.2
"""Seconds within which a second signal is the same one: ``timeout`` sends it to a process and to its group."""


@contextmanager
def hearing(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Gives a function all :data:`SIGNALS`, but SIGHUP under ``nohup``; in a thread none."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        heard = [number for number in SIGNALS if not (number == signal.SIGHUP and ignored)]
        before = {number: signal.signal(number, handle) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Telling:
    """A handler that raises :class:`Told`, once where a signal comes twice."""

    def __init__(self) -> None:
        self._last = -SAME_SIGNAL

    def __call__(self, number: int, frame: FrameType | None) -> None:
        before, self._last = self._last, time.monotonic()
        if self._last - before > SAME_SIGNAL:
            raise Told(number)


def end_at_once() -> None:
    """Lets signals end this process by themselves again: no handler gets to run while it waits for other processes."""
    for number in SIGNALS:
        if isinstance(signal.getsignal(number), Telling):
            signal.signal(number, signal.SIG_DFL)


def _print(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:  # the terminal was closed; what is left to be written to it must not change the exit code
        sys.stdout = sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until the end


def run(main: Callable[[], int | None]) -> NoReturn:
    """Runs a tool: user errors are one line each and exit code 2; ``FBT_DEBUG=1`` shows where they came from.

    A signal is one line as well, and exit code 128 + signal; where there is something to save, others handle it.
    """
    try:
        with hearing(Telling()):
            code = main()
    except FBTError as error:
        if debugging():
            raise
        for line in error.lines():
            _print(f"{error.prefix}{line}")
        code = error.exit_code
    except Told as error:
        _print(f"stopped by {signal.Signals(error.signal).name}")
        code = 128 + error.signal
    except SystemExit as error:
        if (place := _not_ours(error)) is None or debugging():
            raise
        _print(f"error: {described(error)} {place}: a plugin must not end the program; mend it")
        code = 2
    except KeyboardInterrupt:
        _print("stopped")
        code = 130
    except BrokenPipeError:
        sys.stderr.close()
        code = 0
    sys.exit(code or 0)
