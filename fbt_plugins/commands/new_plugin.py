"""Writes a plugin package: a backbone, a fusion strategy and a loss that work, to be replaced."""

from __future__ import annotations

import importlib.util
import keyword
import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import FBTError, typed, user_path
from .arguments import Parser

EXAMPLES = """\
examples:
  fbt new-plugin acme-parts
  fbt new-plugin acme-parts --into ~/projects

docs/guides/plugins.md explains every file of it.
"""

TEMPLATE = Path(__file__).resolve().parent / "templates" / "my-parts"
"""A whole package under the name my-parts (my_parts, MyParts), which stands for the new one's."""


def parse() -> Parser:
    parser = Parser("fbt new-plugin", __doc__, EXAMPLES)
    parser.add_argument("name", help="of the package, such as acme-parts")
    parser.add_argument(
        "--into", type=user_path, default=Path(), metavar="DIR", help="where to write it (default: here)"
    )
    return parser


def main(argv: Sequence[str]) -> None:
    args = parse().parse_args(argv)
    name = normalised(args.name)
    folder = write(name, args.into)
    module = name.replace("-", "_")
    print(f"{folder} is a package with a backbone, a fusion strategy and a loss that work. Next:")
    print(f"  pip install -e {folder}[test] && pytest {folder}")
    print(typed("  fbt plugins"))
    print(typed("  fbt train", f"{folder}/configs/{module}.py", "--check"))
    print(typed("  fbt train", f"{folder}/configs/{module}.py"))


def normalised(name: str) -> str:
    """A name as distributions write it: lower case, parts joined by dashes.

    Raises:
        FBTError: if no distribution or module can have it, or a module has it already.
    """
    found = re.sub(r"[-_.]+", "-", name).lower()
    module = found.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", found) or keyword.iskeyword(module):
        raise FBTError(f"{name!r} cannot be a package's name: begin with a letter and use letters, digits and dashes")
    if importlib.util.find_spec(module) is not None:
        raise FBTError(f"{name!r}: there is a module {module!r} already; choose another name")
    return found


def write(name: str, into: Path) -> Path:
    """Writes the package into a folder of its name.

    Args:
        name: normalised.
        into: an existing folder.

    Returns:
        The package's folder.

    Raises:
        FBTError: if there is something of that name, or ``into`` is no folder.
    """
    if not into.is_dir():
        raise FBTError(f"--into {str(into)!r}: no such folder")
    folder = into / name
    if folder.exists():
        raise FBTError(f"{str(folder)!r} is there already; choose another name or folder")
    capitals = "".join(part.capitalize() for part in name.split("-"))
    names = {"my-parts": name, "my_parts": name.replace("-", "_"), "MyParts": capitals}

    def renamed(text: str) -> str:
        return re.sub("|".join(names), lambda match: names[match[0]], text)

    for source in sorted(p for p in TEMPLATE.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        target = folder / renamed(str(source.relative_to(TEMPLATE)))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(renamed(source.read_text(encoding="utf-8")), encoding="utf-8")
    return folder
