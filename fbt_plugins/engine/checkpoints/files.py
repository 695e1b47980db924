"""The checkpoints in a run's folder: their names, which there are, which is the newest whole one, and what is in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ...errors import FBTError
from ...models.weights import is_state, load_plain

SECONDS = "seconds"
"""Where a checkpoint keeps how long its run has trained, among the message hub's values."""

_NAME = re.compile(r"(?:best_.+_)?(?:epoch_(?P<epoch>\d+)|(?:epoch_\d+_)?iter_(?P<iter>\d+))\.pth")


def name_of(epoch: int | None, iteration: int) -> str:
    """The name of a checkpoint between two intervals; without the epoch where a run counts iterations."""
    return f"iter_{iteration}.pth" if epoch is None else f"epoch_{epoch}_iter_{iteration}.pth"


def iteration_of(name: str, epoch_length: int) -> int | None:
    """The iterations that a checkpoint has behind it, by its name; None of another file.

    Args:
        name: of the file.
        epoch_length: iterations per epoch, for names that tell epochs only.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    return int(match["epoch"]) * epoch_length if match["iter"] is None else int(match["iter"])


def training_checkpoints(work_dir: Path, epoch_length: int) -> list[tuple[int, Path]]:
    """The checkpoints of a run's folder but the best, oldest first, each with the iterations that it has behind it.

    Args:
        work_dir: the folder.
        epoch_length: iterations per epoch, for names that tell epochs only.
    """
    return [(at, path) for at, path in _checkpoints(work_dir, epoch_length) if not path.name.startswith("best_")]


def best_checkpoints(work_dir: Path, epoch_length: int, prefix: str = "best_") -> list[tuple[int, Path]]:
    """The best weights in a run's folder, oldest first, each with its iteration."""
    return [(at, path) for at, path in _checkpoints(work_dir, epoch_length) if path.name.startswith(prefix)]


def _checkpoints(work_dir: Path, epoch_length: int) -> list[tuple[int, Path]]:
    found = [(iteration_of(path.name, epoch_length), path) for path in work_dir.glob("*.pth")]
    return sorted((at, path) for at, path in found if at is not None)


def find_resume(work_dir: Path, epoch_length: int) -> tuple[Path, dict[str, Any]]:
    """The newest whole checkpoint of a run's folder, and what is in it.

    Raises:
        FBTError: if there is none; a run never starts over where it was asked to go on.
    """
    found = training_checkpoints(work_dir, epoch_length)
    for _, path in reversed(found):
        try:
            return path, read_checkpoint(path)
        except FBTError:
            continue  # damaged: the one before it may be whole
    if found:
        raise FBTError(
            f"--resume: all {len(found)} checkpoints in {work_dir} are damaged; bring back a copy of one, "
            "or leave out --resume to start from the beginning"
        )
    raise FBTError(
        f"--resume: no checkpoint in {work_dir}; leave out --resume to start from the beginning, "
        "or write --resume auto to do that where there is none"
    )


def set_aside(work_dir: Path, epoch_length: int, newer_than: int = -1) -> Path | None:
    """Moves what another run left in a folder into a folder of its own, so that nothing is mixed up, or lost.

    Args:
        work_dir: of the run that begins.
        epoch_length: iterations per epoch.
        newer_than: the iteration that it goes on from; older checkpoints stay. -1 for a run that is another.

    Returns:
        The folder, or None where there was nothing.
    """
    stale = [path for at, path in training_checkpoints(work_dir, epoch_length) if at > newer_than]
    if newer_than < 0:
        names = (
            "best_*.pth",
            "metrics.jsonl",
            "summary.json",
            "student.safetensors",
            "config.py",
            "curves.png",
            "export",
        )
        stale += [path for name in names for path in work_dir.glob(name)]
    elif stale:
        stale += [path for at, path in best_checkpoints(work_dir, epoch_length) if at > newer_than]
    if not any(path.suffix in (".pth", ".safetensors", ".jsonl") for path in stale):
        return None
    number = 1
    while (folder := work_dir / f"earlier_{number}").exists():
        number += 1
    folder.mkdir()
    for path in stale:
        path.replace(folder / path.name)
    return folder


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A training checkpoint of ours.

    Raises:
        FBTError: if the file is missing, truncated or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FBTError(f"checkpoint {str(path)!r}: no such file")
    checkpoint = load_plain(path)
    if not isinstance(checkpoint, dict) or not {"meta", "state_dict", "message_hub"} <= checkpoint.keys():
        raise FBTError(f"checkpoint {str(path)!r}: not a training checkpoint (it has no meta, state_dict, message_hub)")
    kinds = [isinstance(checkpoint[key], dict) for key in ("meta", "message_hub")]
    if not all(kinds) or not is_state(checkpoint["state_dict"]):
        raise FBTError(f"checkpoint {str(path)!r}: not a training checkpoint (its state_dict is no dict of tensors)")
    return checkpoint
