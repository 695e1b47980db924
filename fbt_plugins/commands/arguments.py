"""What every command-line tool shares: one-line errors, exit codes, and mmengine's ``--cfg-options``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

USER_ERROR = 2
"""Exit code where the user can mend it."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def __init__(self, prog: str, description: str | None, epilog: str) -> None:
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=prog, description=description, epilog=epilog, formatter_class=form)

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"error: {message} (see {self.prog} --help)\n")


class CfgOptions(argparse.Action):
    """``--cfg-options a.b=1 c=[x,y]`` as mmengine's users know it; a malformed pair is a usage error.

    Beside the dict, ``cfg_options_typed`` keeps the pairs as they were typed, for tools that call others.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        from mmengine.config import DictAction

        options = dict(getattr(namespace, self.dest, None) or {})
        parse, parsed = DictAction([], "pair"), argparse.Namespace()
        for pair in values or ():
            key, found, _ = str(pair).partition("=")
            if not found or not all(key.split(".")):
                parser.error(f"--cfg-options {pair!r}: write key=value, as in optim_wrapper.optimizer.lr=0.001")
            try:
                parse(parser, parsed, [str(pair)])
                options |= parsed.pair
            except (AssertionError, ValueError, IndexError, RecursionError):
                parser.error(f"--cfg-options {pair!r}: brackets do not match in the value")
        setattr(namespace, self.dest, options)
        typed = [*getattr(namespace, f"{self.dest}_typed", []), *map(str, values or ())]
        setattr(namespace, f"{self.dest}_typed", typed)
