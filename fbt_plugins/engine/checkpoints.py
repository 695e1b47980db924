"""Checkpoints of a run: plain, whole, found again, and the student as a file for everyone."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import CheckpointHook as MMCheckpointHook
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from safetensors.torch import save as safetensors_bytes

from ..errors import FBTError
from ..staged import StagedModel
from ..weights import METADATA_KEY, load_plain
from .files import write_atomic

_PATHS = ("best_ckpt", "last_ckpt")


@HOOKS.register_module()
class AtomicCheckpointHook(MMCheckpointHook):
    """mmengine's CheckpointHook, writing whole files and removing an old one only when the next is safe.

    Args:
        interval: epochs (or iterations) between saves.
        max_keep_ckpts: how many of them are kept.
        save_best: metric whose best checkpoint is kept as well.
        rule: "greater" or "less" is better.
        by_epoch: whether the interval is in epochs.
        save_begin: epoch or iteration before which nothing is saved.
    """

    def __init__(
        self,
        interval: int = 1,
        max_keep_ckpts: int = 1,
        save_best: str | None = "student_top1",
        rule: str = "greater",
        by_epoch: bool = True,
        save_begin: int = 0,
    ) -> None:
        super().__init__(
            interval=interval,
            max_keep_ckpts=max_keep_ckpts,
            save_best=save_best,
            rule=rule if save_best else None,
            backend_args={"backend": "atomic"},
            by_epoch=by_epoch,
            save_begin=save_begin,
        )


@HOOKS.register_module()
class PlainCheckpointHook(Hook):
    """Keeps checkpoints to tensors and plain types, so that ``weights_only=True`` loads all of them."""

    priority = "LOWEST"

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        info = checkpoint["message_hub"]["runtime_info"]
        # Log histories are left out: metrics.jsonl has them, and their buffers are objects.
        checkpoint["message_hub"] = {"log_scalars": {}, "runtime_info": plain(dict(info)), "resumed_keys": {}}
        checkpoint["meta"] = plain(checkpoint["meta"])

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        info = checkpoint.get("message_hub", {}).get("runtime_info", {})
        for key in _PATHS:  # mmengine stores absolute paths; the folder may have been moved
            if key in info:
                info[key] = str(Path(runner.work_dir) / Path(info[key]).name)


def plain(value: Any) -> Any:
    """A value as tensors, numbers, strings, None, and dicts, lists and tuples of these; all else as its text."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(v) for v in value) if type(value) in (list, tuple) else [plain(v) for v in value]
    if value is None or type(value) in (bool, int, float, str) or isinstance(value, torch.Tensor):
        return value
    if hasattr(value, "item"):  # a numpy number
        return value.item()
    return str(value)


def find_resume(work_dir: Path) -> tuple[Path, dict[str, Any]]:
    """The newest whole checkpoint of a run's folder, and what is in it.

    Raises:
        FBTError: if there is none; a run never starts over where it was asked to go on.
    """
    found = [
        (int(m[1]), p) for p in work_dir.glob("*.pth") if (m := re.fullmatch(r"(?:epoch|iter)_(\d+)\.pth", p.name))
    ]
    for _, path in sorted(found, reverse=True):
        try:
            return path, read_checkpoint(path)
        except FBTError:
            continue  # a file that is not whole is not the newest whole one
    what = "only damaged checkpoints" if found else "no checkpoint"
    raise FBTError(f"--resume: {what} in {work_dir}; leave out --resume to start from the beginning")


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
    return checkpoint


def save_student(model: StagedModel, path: Path, about: Mapping[str, Any]) -> None:
    """Writes a model as safetensors under its own (timm's) names, with what is needed to build it as metadata.

    Args:
        model: the student.
        path: the file.
        about: further metadata, such as classes and accuracy.
    """
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.net.state_dict().items()}
    metadata: dict[str, Any] = {"name": model.name, "arguments": model.arguments, "mean": model.mean, "std": model.std}
    metadata |= {"input_size": model.input_size, **about}
    text = json.dumps(metadata, default=str)
    write_atomic(path, safetensors_bytes(tensors, metadata={METADATA_KEY: text}))
