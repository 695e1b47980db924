"""What the commands share: arguments, errors of one line, and mmengine's ``--cfg-options``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from ..errors import FBTError, typed, user_path

USER_ERROR = 2
"""Exit code where the user can mend it."""


def storage_url(text: str) -> str:
    """A database's URL, in which a file of SQLite's may be in one's home."""
    return re.sub(r"(?<=^sqlite:///)~[^/]*", lambda match: str(user_path(match[0])), text)


def as_table(rows: dict[str, str]) -> str:
    """Names and what each is, a line each."""
    width = max(map(len, rows))
    return "\n".join(f"  {name:{width}}  {about}" for name, about in rows.items())


@contextmanager
def extras(names: str) -> Iterator[None]:
    """Stands around imports that need some of the distribution's extras.

    Args:
        names: of the extras, "search,report".

    Raises:
        FBTError: for the first package that is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise FBTError(f"{error.name} is not installed: pip install 'fbt-plugins[{names}]'") from None


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line.

    Args:
        command: "fbt NAME"; help and errors show it, and all examples, as one types it here.
        description: what it does.
        examples: and whatever else is to be known, after the arguments. Configs are "configs/NAME.py".
    """

    def __init__(self, command: str, description: str | None, examples: str) -> None:
        form = argparse.RawDescriptionHelpFormatter
        examples = re.sub(r"\bconfigs/(\S+)\.py", lambda m: m[0] if Path(m[0]).is_file() else m[1], typed(examples))
        super().__init__(prog=typed(command), description=description, epilog=examples, formatter_class=form)

    def add_shared(self, *names: str) -> None:
        """Adds arguments that other commands have too."""
        for name in names:
            self.add_argument(name, **SHARED[name])

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"error: {message} (see {self.prog} --help)\n")


_DICT = re.compile(r"""[=\[(,]\s*['"]?(dict\(|\{[^}]*:|\{\s*\}['"]?$)""")
"""Where an option's value has a dict in it."""


class CfgOptions(argparse.Action):
    """``--cfg-options a.b=1 c=[x,y]`` as mmengine's users know it; a malformed pair is a usage error.

    Beside the dict, ``cfg_options_typed`` keeps the pairs as they were typed, for commands that call others.
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
            pair = str(pair)
            key, found, _ = pair.partition("=")
            if not found or not all(key.split(".")):
                parser.error(f"--cfg-options {pair!r}: write key=value, as in optim_wrapper.optimizer.lr=0.001")
            if _DICT.search(pair):
                keys = f"name its keys, each by itself, such as {key}.type=NAME ({key}.0.type=NAME of a list's item)"
                parser.error(f"--cfg-options {pair!r}: a dict cannot be given; {keys}, or write it in a config file")
            try:
                parse(parser, parsed, [pair])
                options |= parsed.pair
            except (AssertionError, ValueError, IndexError, RecursionError):
                parser.error(f"--cfg-options {pair!r}: brackets do not match in the value")
        setattr(namespace, self.dest, options)
        as_typed = [*getattr(namespace, f"{self.dest}_typed", []), *map(str, values or ())]
        setattr(namespace, f"{self.dest}_typed", as_typed)


class Workers(argparse.Action):
    """A number of processes."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if values < 1:
            parser.error(f"{option_string} is 1 or more")
        setattr(namespace, self.dest, values)


SHARED: dict[str, dict[str, Any]] = {
    "config": dict(help="config file, or the name of a shipped one (fbt configs lists them)"),
    "--pair": dict(help="which pair of models, where the config is a matrix"),
    "--method": dict(help="which method, where the config is a matrix"),
    "--cfg-options": dict(nargs="+", action=CfgOptions, metavar="KEY=VALUE", help="change values of the config"),
    "--device": dict(help="cpu, cuda or cuda:N (default: a GPU if there is one)"),
    "--amp": dict(nargs="?", const="bf16", choices=("bf16", "fp16"), help="mixed precision (default: bf16)"),
    "--compile": dict(action="store_true", help="torch.compile the models and losses"),
    "--workers": dict(
        type=int, action=Workers, default=1, metavar="N", help="processes at once (default: %(default)s)"
    ),
    "--storage": dict(
        type=storage_url, metavar="URL", help="database of the study (default: study.db, of SQLite, beside the runs)"
    ),
}
"""Arguments that more than one command has."""
