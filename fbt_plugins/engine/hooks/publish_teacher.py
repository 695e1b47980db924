"""Teachers as files: a folder holds ``NAME.safetensors`` of each, and a manifest that says where they came from."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ...errors import FBTError, one_line, run, user_path
from ...files import locked, read_summary, write_atomic
from ...models.weights import MANIFEST, SUFFIX, embedded_folder, file_sha256, read_manifest, read_weights

_OF_MODEL = ("name", "arguments", "input_size", "mean", "std", "classes")
_OF_RUN = ("seed", "best_epoch", "seconds", "device", "world_size", "versions", "git")


def publish(run: Path, target: Path, recipe: str | None = None) -> dict[str, Any]:
    """Makes the student of a finished run a teacher.

    The entry is written before the file, so that a teacher that is there has its entry.

    Args:
        run: folder of the run.
        target: the teacher's file; its folder's manifest gets an entry, beside those that other processes write.
        recipe: the command that made it; by default the one that the run was started with.

    Returns:
        The entry: sha256, accuracy, normalisation, recipe and what else one may ask.

    Raises:
        FBTError: if the run is not finished, or a file cannot be written.
    """
    source = run / "student.safetensors"
    try:
        summary = read_summary(run)
        state, about = read_weights(str(source))
        measure = summary.get("measure", "top1")
        entry = {
            "sha256": file_sha256(source),
            "accuracy": {measure: summary[f"student_{measure}"], "split": summary["split"]},
            "parameters": sum(tensor.numel() for tensor in state.values()),
            **{key: about[key] for key in _OF_MODEL},
            "recipe": recipe or summary.get("command"),
            **{key: summary[key] for key in _OF_RUN if key in summary},
        }
    except (FBTError, KeyError) as error:
        raise FBTError(f"{run}: not the folder of a finished run ({one_line(error)})") from error
    manifest = target.with_name(MANIFEST)
    try:
        with locked(target.with_name(f".{MANIFEST}.lock"), f"{manifest} is being written", wait=True):
            text = json.dumps(read_manifest(target.parent) | {target.stem: entry}, indent=2, sort_keys=True)
            write_atomic(manifest, text + "\n")
            write_atomic(target, source.read_bytes())
    except OSError as error:
        raise FBTError(f"{target}: {error.strerror}") from error
    return entry


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


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fbt_plugins.engine.hooks.publish_teacher",
        description="Makes a finished run's student a teacher of the package: embedded:NAME.",
    )
    parser.add_argument("run", type=user_path, help="folder of the finished run")
    parser.add_argument("name", help="name of the teacher")
    parser.add_argument("--recipe", help="the command that made it (default: what its summary.json says)")
    args = parser.parse_args()
    print(embed(args.run, args.name, args.recipe))


if __name__ == "__main__":
    run(main)
