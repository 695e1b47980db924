"""Puts the student of a finished run into the package, as a teacher that configs name by "embedded:NAME"."""

from __future__ import annotations

from pathlib import Path

from ..cli import Parser, run
from ..errors import FBTError
from ..weights import SUFFIX, embedded_folder
from .publish import publish

LIMIT = 4_000_000
"""Bytes that a shipped teacher may have."""


def embed(folder: Path, name: str, recipe: str | None = None) -> Path:
    """Publishes a run's student in the package's folder of teachers.

    Args:
        folder: of a finished run.
        name: the teacher's name.
        recipe: the command that made it; by default the one that the run was started with.

    Returns:
        The shipped file.

    Raises:
        FBTError: if the run is not finished, or the file is too large.
    """
    source, target = folder / "student.safetensors", embedded_folder() / f"{name}{SUFFIX}"
    if source.is_file() and source.stat().st_size >= LIMIT:
        raise FBTError(f"{source} has {source.stat().st_size:,} bytes; a shipped teacher has less than {LIMIT:,}")
    publish(folder, target, recipe)
    return target


EXAMPLES = """\
example:
  python -m fbt_plugins.engine.embed_teacher work_dirs/convnext_fashion_mnist convnext_fashion_mnist
"""


def main() -> None:
    parser = Parser(prog="python -m fbt_plugins.engine.embed_teacher", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("run", type=Path, help="folder of the finished run")
    parser.add_argument("name", help="name of the teacher")
    parser.add_argument("--recipe", help="the command that made it (default: what its summary.json says)")
    args = parser.parse_args()
    print(embed(args.run, args.name, args.recipe))


if __name__ == "__main__":
    run(main)
