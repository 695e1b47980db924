"""Checkpoints of a run: plain, whole, found again, and the student as a file for everyone."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop
from safetensors.torch import save as safetensors_bytes

from ...errors import FBTError
from ...files import write_atomic
from ...models.staged import StagedModel
from ...models.weights import METADATA_KEY, SIGNATURE_KEY, is_state, load_plain, signature_of
from ..mmengine_patches import PatchedCheckpointHook
from ..training_run import TrainingRun
from .batchnorm import gather_statistics
from .checkpoint_identity import identity
from .loss_memories import MEMORIES, memories

_PATHS = ("best_ckpt", "last_ckpt")
_NAME = re.compile(r"(?:epoch_(?P<epoch>\d+))?_?(?:iter_(?P<iter>\d+))?\.pth")


@HOOKS.register_module()
class AtomicCheckpointHook(PatchedCheckpointHook):
    """mmengine's CheckpointHook, writing whole files and removing an old one only when the next is safe.

    A checkpoint is never taken in the middle of a group of accumulated batches, nor after a loss that was not finite.

    Args:
        interval: epochs (or iterations) between saves; by default 1 epoch, or the iterations between two validations.
        max_keep_ckpts: how many of them are kept.
        save_best: metric whose best checkpoint is kept as well.
        rule: "greater" or "less" is better.
        by_epoch: whether the interval is in epochs; by default what the loop counts in.
        save_begin: epoch or iteration before which nothing is saved.

    Attributes:
        saved: the iteration of the newest checkpoint of this run; -1 before the first.
    """

    def __init__(
        self,
        interval: int | None = None,
        max_keep_ckpts: int = 1,
        save_best: str | None = "student_top1",
        rule: str = "greater",
        by_epoch: bool | None = None,
        save_begin: int = 0,
    ) -> None:
        super().__init__(
            interval=interval or 1,
            max_keep_ckpts=max_keep_ckpts,
            save_best=save_best,
            rule=rule if save_best else None,
            backend_args={"backend": "atomic"},
            by_epoch=by_epoch is not False,
            save_begin=save_begin,
        )
        self._asked = interval, by_epoch
        self.saved = -1
        self.rank_statistics: list[list[torch.Tensor]] = []
        self._due = False

    def before_train(self, runner: TrainingRun) -> None:
        loop, (interval, by_epoch) = runner.train_loop, self._asked
        self.by_epoch = isinstance(loop, EpochBasedTrainLoop) if by_epoch is None else by_epoch
        self.interval = interval or (1 if self.by_epoch else loop.val_interval)
        self.filename_tmpl = "epoch_{}.pth" if self.by_epoch else "iter_{}.pth"
        super().before_train(runner)
        self.saved = runner.iter if runner.resuming else -1

    def after_train_iter(
        self, runner: TrainingRun, batch_idx: int, data_batch: Any = None, outputs: Mapping[str, Any] | None = None
    ) -> None:
        if self.by_epoch:
            return
        self._due |= self.every_n_train_iters(runner, self.interval, self.save_begin)
        if (self._due and runner.optim_wrapper.should_update()) or self.is_last_train_iter(runner):
            self._due = False
            done = runner.iter + 1
            self.write(runner, self.filename_tmpl.format(done), {"epoch": runner.epoch, "iter": done})

    def save_now(self, runner: TrainingRun, epoch: int, iteration: int) -> None:
        """Saves between two intervals.

        Args:
            runner: the run.
            epoch: epochs that are complete.
            iteration: iterations that were made.
        """
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        name = f"epoch_{epoch}_iter_{iteration}.pth" if by_epoch else f"iter_{iteration}.pth"
        self.write(runner, name, {"epoch": epoch, "iter": iteration})

    def write(self, runner: TrainingRun, name: str, meta: dict[str, Any]) -> None:
        runner.check_losses(meta["iter"])
        self.rank_statistics = gather_statistics(runner.model)
        path = str(Path(self.out_dir) / name)
        runner.message_hub.update_info("last_ckpt", path)
        # A copy of meta, because mmengine adds to the dict that it is given.
        runner.save_checkpoint(self.out_dir, name, meta=dict(meta), backend_args=self.backend_args)
        self.rank_statistics = []
        self.saved, self.last_ckpt = meta["iter"], path
        if is_main_process():
            for _, old in training_checkpoints(Path(self.out_dir))[: -self.max_keep_ckpts or None]:
                if self.max_keep_ckpts > 0:
                    old.unlink(missing_ok=True)


@HOOKS.register_module()
class PlainCheckpointHook(Hook):
    """Keeps checkpoints to tensors and plain types, so that ``weights_only=True`` loads all of them."""

    priority = "LOWEST"
    _identity: Mapping[str, Any] | None = None

    def before_save_checkpoint(self, runner: TrainingRun, checkpoint: dict[str, Any]) -> None:
        info = plain(dict(checkpoint["message_hub"]["runtime_info"]))
        # Log histories are left out: metrics.jsonl has them, and their buffers are objects. All else is marked as
        # resumed, because mmengine loses the rest at the second resume.
        marks = dict.fromkeys(info, True)
        checkpoint["message_hub"] = {"log_scalars": {}, "runtime_info": info, "resumed_keys": marks}
        self._identity = self._identity or identity(runner)
        checkpoint["meta"] = plain(checkpoint["meta"]) | self._identity
        checkpoint["rank_statistics"] = runner.checkpoints.rank_statistics
        if "optimizer" in checkpoint:  # one to resume from, not the best
            distiller = runner.distiller
            checkpoint[MEMORIES] = {name: memory.cpu() for name, memory in memories(distiller).items()}

    def after_load_checkpoint(self, runner: TrainingRun, checkpoint: dict[str, Any]) -> None:
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


def training_checkpoints(work_dir: Path) -> list[tuple[tuple[int, int], Path]]:
    """The checkpoints of a run's folder but the best, oldest first, with (epochs, iterations) as their names tell."""
    found = []
    for path in work_dir.glob("*.pth"):
        if match := _NAME.fullmatch(path.name):
            found.append(((int(match["epoch"] or 0), int(match["iter"] or 0)), path))
    return sorted(found)


def find_resume(work_dir: Path) -> tuple[Path, dict[str, Any]]:
    """The newest whole checkpoint of a run's folder, and what is in it.

    Raises:
        FBTError: if there is none; a run never starts over where it was asked to go on.
    """
    found = training_checkpoints(work_dir)
    for _, path in reversed(found):
        try:
            return path, read_checkpoint(path)
        except FBTError:
            continue  # damaged: the one before it may be whole
    what = "only damaged checkpoints" if found else "no checkpoint"
    raise FBTError(
        f"--resume: {what} in {work_dir}; leave out --resume to start from the beginning, "
        "or write --resume auto to do that where there is none"
    )


def set_aside(work_dir: Path, newer_than: tuple[int, int] = (-1, -1)) -> Path | None:
    """Moves what another run left in a folder into a folder of its own, so that nothing is mixed up, or lost.

    Args:
        work_dir: of the run that begins.
        newer_than: (epochs, iterations) of the checkpoint that it goes on from; older ones stay.

    Returns:
        The folder, or None where there was nothing.
    """
    stale = [path for age, path in training_checkpoints(work_dir) if age > newer_than]
    if newer_than == (-1, -1):
        names = ("best_*.pth", "metrics.jsonl", "summary.json", "student.safetensors", "config.py")
        stale += [path for name in names for path in work_dir.glob(name)]
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
    about_file = {METADATA_KEY: text, SIGNATURE_KEY: signature_of(tensors, text)}
    write_atomic(path, safetensors_bytes(tensors, metadata=about_file))
