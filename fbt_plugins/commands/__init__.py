"""The commands of ``fbt``, a file each: a parser and a call."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from .. import __version__
from ..errors import TOOLS, TOOLS_FOLDER, FBTError, nearest, run


def main() -> NoReturn:
    """``fbt``."""
    os.environ.pop(TOOLS_FOLDER, None)
    run(lambda: fbt(sys.argv[1:]))


def tool(command: str) -> NoReturn:
    """A file of ``tools``: messages then say what to type as it was typed."""
    os.environ[TOOLS_FOLDER] = str(Path(sys.argv[0]).parent)
    run(lambda: call(command, sys.argv[1:]))


def fbt(argv: Sequence[str]) -> int | None:
    """Runs ``fbt`` with arguments; its exit code.

    Raises:
        FBTError: if there is no such command, or for whatever the command says.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print("\n".join(["usage: fbt COMMAND ...", "", *TOOLS]))
        return 0
    if argv[0] == "--version":
        print(f"fbt-plugins {__version__}")
        return 0
    if argv[0] not in TOOLS:
        raise FBTError(f"fbt {argv[0]}: no such command{nearest(argv[0], TOOLS)} (see fbt --help)")
    return call(argv[0], argv[1:])


def call(command: str, argv: Sequence[str]) -> int | None:
    """Imports a command's module, and that alone, and runs it."""
    sys.path.insert(0, str(Path.cwd()))  # plugins beside the config's project
    module = import_module(f".{TOOLS[command].removesuffix('.py')}", __name__)
    code: int | None = module.main(argv)
    return code
