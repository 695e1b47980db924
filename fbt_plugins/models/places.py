"""Where in a network's own code something happened, for the lines that refuse it."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import CodeType, MethodType

from torch import nn


def files_of(net: nn.Module) -> frozenset[str]:
    """The files that define the classes of a network's modules, and methods that these got; torch's left out."""
    kinds = {kind for module in net.modules() for kind in type(module).__mro__}
    modules = {kind.__module__ for kind in kinds if kind.__module__.partition(".")[0] not in ("torch", "builtins")}
    found = [getattr(sys.modules.get(name), "__file__", None) for name in modules]
    given = (value for module in net.modules() for value in vars(module).values() if isinstance(value, MethodType))
    found += [getattr(getattr(method.__func__, "__code__", None), "co_filename", None) for method in given]
    return frozenset(file for file in found if file)


def place_of(error: BaseException, files: Iterable[str]) -> str:
    """The innermost line of some files that an exception passed through, "package/nets.py:12"; "" if there is none."""
    wanted = set(files)
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in wanted]
    return show(lines[-1].filename, lines[-1].lineno or 0) if lines else ""


def last_line(error: BaseException) -> str:
    """The innermost line that an exception passed through, whoever's it is."""
    frames = traceback.extract_tb(error.__traceback__)
    return show(frames[-1].filename, frames[-1].lineno or 0) if frames else ""


def show(file: str, line: int) -> str:
    """A place as a user can open it: from the folder that Python imports it from on."""
    roots = sorted((root for root in map(Path, sys.path) if Path(file).is_relative_to(root.resolve())), key=str)
    return f"{Path(file).relative_to(roots[-1].resolve()) if roots else file}:{line}"


def calling(files: Iterable[str]) -> str:
    """The line of some files that is running now."""
    wanted = set(files)
    frame = sys._getframe(1)
    while frame is not None:
        code: CodeType = frame.f_code
        if code.co_filename in wanted:
            return show(code.co_filename, frame.f_lineno)
        frame = frame.f_back  # type: ignore[assignment]
    return ""
