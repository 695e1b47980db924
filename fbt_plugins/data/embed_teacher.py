"""Puts the student of a finished run into the package, as a teacher that configs name by "embedded:NAME"."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from ..cli import Parser, run
from ..errors import FBTError
from ..weights import embedded_folder, embedded_manifest, read_weights

LIMIT = 4_000_000
"""Bytes that a shipped teacher may have."""


def embed(folder: Path, name: str, recipe: str) -> Path:
    """Copies ``student.safetensors`` of a run's folder and writes its line of the manifest.

    Args:
        folder: of a finished run.
        name: the teacher's name.
        recipe: the command that made it.

    Returns:
        The shipped file.

    Raises:
        FBTError: if the run is not finished, or the file is too large.
    """
    source, results = folder / "student.safetensors", folder / "summary.json"
    if not source.is_file() or not results.is_file():
        raise FBTError(
            f"{folder}: not the folder of a finished run (student.safetensors and summary.json are not both there)"
        )
    if source.stat().st_size >= LIMIT:
        raise FBTError(f"{source} has {source.stat().st_size:,} bytes; a shipped teacher has less than {LIMIT:,}")
    summary = json.loads(results.read_text(encoding="utf-8"))
    state, about = read_weights(str(source))
    entry = {
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "accuracy": {"top1": summary["student_top1"], "split": summary["split"]},
        "parameters": sum(tensor.numel() for tensor in state.values()),
        **{key: about[key] for key in ("name", "arguments", "input_size", "mean", "std", "classes")},
        "recipe": recipe,
        **{key: summary[key] for key in ("seed", "best_epoch", "seconds", "device", "versions")},
    }
    target = embedded_folder() / f"{name}.safetensors"
    shutil.copyfile(source, target)
    manifest = embedded_manifest() | {name: entry}
    text = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
    (embedded_folder() / "manifest.json").write_text(text, encoding="utf-8")
    return target


EXAMPLES = """\
example:
  python -m fbt_plugins.data.embed_teacher work_dirs/convnext_fashion_mnist convnext_fashion_mnist \\
    --recipe "python tools/train.py configs/teachers/convnext_fashion_mnist.py"
"""


def main() -> None:
    parser = Parser(prog="python -m fbt_plugins.data.embed_teacher", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("run", type=Path, help="folder of the finished run")
    parser.add_argument("name", help="name of the teacher")
    parser.add_argument("--recipe", required=True, help="the command that made it")
    args = parser.parse_args()
    print(embed(args.run, args.name, args.recipe))


if __name__ == "__main__":
    run(main)
