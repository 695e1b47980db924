"""The commands of ``fbt``, a file each: a parser and a call."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from .. import __version__
from ..config.locating import first_line
from ..errors import TOOLS, TOOLS_FOLDER, FBTError, nearest, run
from .arguments import Parser, as_table

MODULES = {command: file.removesuffix(".py") for command, file in TOOLS.items()} | {"configs": "configs"}
"""Each command's module. Nothing of it is imported before the command is used: help must not wait for torch."""

HELP = """\
usage: fbt COMMAND ...

Cross-architecture knowledge distillation as plugins.

commands:
{commands}

examples:
  fbt distill --data photos/ --teacher timm:convnext_tiny --student timm:resnet18 --out out/   # your own images
  fbt configs                                # what there is to train
  fbt train fbt_convnext_resmlp              # one of them; a path to a file of yours goes as well
  fbt train fbt_convnext_resmlp --cfg-options train_cfg.max_epochs=3
  fbt inspect resnet18 --img-size 32 --against resmlp_s4_patch4_32
  fbt COMMAND --help                         # all arguments of a command, and examples
  fbt --version"""


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
        files = {name: Path(__file__).with_name(f"{module}.py") for name, module in MODULES.items()}
        print(HELP.format(commands=as_table({name: first_line(file) for name, file in files.items()})))
        return 0
    if argv[0] == "--version":
        print(f"fbt-plugins {__version__}")
        return 0
    if argv[0] not in MODULES:
        raise FBTError(f"fbt {argv[0]}: no such command{nearest(argv[0], MODULES)} (see fbt --help)")
    return call(argv[0], argv[1:])


def call(command: str, argv: Sequence[str]) -> int | None:
    """Imports a command's module, and that alone, and runs it."""
    sys.path.insert(0, str(Path.cwd()))  # plugins beside the config's project
    code: int | None = import_module(f".{MODULES[command]}", __name__).main(argv)
    return code


def parser_of(command: str) -> Parser:
    """The parser of a command, for pages and tests about it."""
    parser: Parser = import_module(f".{MODULES[command]}", __name__).parse()
    return parser
