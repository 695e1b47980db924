"""Checkpoints of a run: plain, whole, found again, and the student as a file for everyone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop
from safetensors.torch import save as safetensors_bytes

from ...errors import ConfigError, FBTError, is_number, nearest
from ...files import write_atomic
from ...models.staged import StagedModel
from ...models.weights import METADATA_KEY, SIGNATURE_KEY, is_state, load_plain, save_plain, signature_of
from ..metrics import measures
from ..training_run import TrainingRun
from .batchnorm import gather_statistics
from .checkpoint_identity import identity
from .loss_memories import MEMORIES, memories
from .topk import TopK

_PATHS = ("best_ckpt", "last_ckpt")
_NAME = re.compile(r"(?:best_.+_)?(?:epoch_(?P<epoch>\d+)|(?:epoch_\d+_)?iter_(?P<iter>\d+))\.pth")
SECONDS = "seconds"
"""Where a checkpoint keeps how long its run has trained, among the message hub's values."""

_HOOK = "default_hooks.checkpoint"
AUTO = "auto"
_ATOMIC = {"backend": "atomic"}


@HOOKS.register_module()
class AtomicCheckpointHook(Hook):
    """Saves whole files, and removes an old one only when the next is safe.

    A checkpoint is never taken in the middle of a group of accumulated batches, nor with a loss or weights that are not
    finite. It is taken before the validation of its iteration, and written again after a new best, which it then names;
    a resume repeats that validation in any case. The best weights that a kept checkpoint names are kept as well.

    Args:
        interval: epochs (or iterations) between saves; by default 1 epoch, or the iterations between two validations.
        max_keep_ckpts: how many of them are kept; -1 is all.
        save_best: metric of the validation whose best checkpoint is kept as well; "auto" is the student's of the first
            metric of the evaluator, "student_top1" or "student_knn"; None for none.
        rule: "greater" or "less" is better.
        by_epoch: whether the interval is in epochs; by default what the loop counts in.
        save_begin: epoch or iteration before which nothing is saved.

    Attributes:
        saved: the iteration of the newest checkpoint of this run; -1 before the first.
        last_ckpt: its path.

    Raises:
        ConfigError: for another rule, or for more than one metric.
    """

    priority = "VERY_LOW"

    def __init__(
        self,
        interval: int | None = None,
        max_keep_ckpts: int = 1,
        save_best: str | None = AUTO,
        rule: str = "greater",
        by_epoch: bool | None = None,
        save_begin: int = 0,
    ) -> None:
        if not isinstance(save_best, str | None):
            raise ConfigError(f"{_HOOK}.save_best: one metric's name or None, not {save_best!r}")
        if rule not in ("greater", "less"):
            raise ConfigError(f"{_HOOK}.rule: 'greater' or 'less', not {rule!r}")
        self.max_keep_ckpts, self.save_best, self.rule, self.save_begin = max_keep_ckpts, save_best, rule, save_begin
        self._asked = interval, by_epoch
        self.saved = -1
        self.last_ckpt: str | None = None
        self.rank_statistics: list[list[torch.Tensor]] = []
        self._due = False

    def before_train(self, runner: TrainingRun) -> None:
        loop, (interval, by_epoch) = runner.train_loop, self._asked
        epochs = isinstance(loop, EpochBasedTrainLoop)
        if by_epoch and not epochs:
            raise ConfigError(f"{_HOOK}.by_epoch: this run counts iterations; leave it out")
        self.by_epoch = epochs if by_epoch is None else by_epoch
        self.interval = interval or (1 if self.by_epoch else loop.val_interval)
        self.filename_tmpl = "epoch_{}.pth" if self.by_epoch else "iter_{}.pth"
        if self.save_best is not None and runner.val_loop is not None:
            metrics = runner.val_loop.evaluator.metrics
            if self.save_best == AUTO:
                self.save_best = f"student_{measures(metrics)[0].key}"
            if all(isinstance(metric, TopK) for metric in metrics):  # another's names show in the first validation
                names = {
                    f"{model}_top{k}" for metric in metrics for k in metric.topk for model in runner.distiller.names
                }
                self._known(names)

    def _known(self, names: Iterable[str]) -> None:
        if self.save_best is not None and self.save_best not in names:
            what = f"{_HOOK}.save_best: {self.save_best!r}: no metric of the validation"
            raise ConfigError(f"{what}{nearest(self.save_best, names)}")

    def after_train_epoch(self, runner: TrainingRun) -> None:
        due = self.by_epoch and self.every_n_epochs(runner, self.interval, self.save_begin)
        if due or (self.by_epoch and self.is_last_train_epoch(runner)):
            done = runner.epoch + 1
            self.write(runner, self.filename_tmpl.format(done), {"epoch": done, "iter": runner.iter})

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

    def after_val_epoch(self, runner: TrainingRun, metrics: dict[str, float] | None = None) -> None:
        if self.save_best is None:
            return
        self._known(metrics or {})
        score, best = (metrics or {})[self.save_best], runner.message_hub.runtime_info.get("best_score")
        if best is not None and not (score > best if self.rule == "greater" else score < best):
            return
        meta = {"epoch": runner.epoch, "iter": runner.iter}
        name = self._prefix + self.filename_tmpl.format(meta["epoch" if self.by_epoch else "iter"])
        runner.message_hub.update_info("best_score", score)
        runner.message_hub.update_info("best_ckpt", str(Path(runner.work_dir) / name))
        only_weights = {"save_optimizer": False, "save_param_scheduler": False}
        runner.save_checkpoint(runner.work_dir, name, meta=dict(meta), backend_args=_ATOMIC, **only_weights)
        if self.saved == runner.iter and self.last_ckpt is not None:  # a checkpoint that does not know of it yet
            self.write(runner, Path(self.last_ckpt).name, meta)

    def save_now(self, runner: TrainingRun, epoch: int, iteration: int) -> None:
        """Saves between two intervals.

        Args:
            runner: the run.
            epoch: epochs that are complete.
            iteration: iterations that were made.
        """
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        self.write(runner, _name(epoch if by_epoch else None, iteration), {"epoch": epoch, "iter": iteration})

    def write(self, runner: TrainingRun, name: str, meta: dict[str, int]) -> None:
        """Writes a checkpoint, then removes those before it that are too many; all processes of a job call it.

        Args:
            runner: the run.
            name: of the file.
            meta: with "epoch" and "iter", epochs and iterations that were made.

        Raises:
            FBTError: if a loss or a weight is not finite.
        """
        runner.check_losses(meta["iter"])
        if bad := not_finite(runner.distiller):
            raise FBTError(f"{bad} is not finite after iteration {meta['iter']}; lower the learning rate")
        runner.call_hook("before_write")
        self.rank_statistics = gather_statistics(runner.model)
        path = Path(runner.work_dir) / name
        runner.message_hub.update_info("last_ckpt", str(path))
        # A copy of meta, because mmengine adds to the dict that it is given.
        runner.save_checkpoint(runner.work_dir, name, meta=dict(meta), backend_args=_ATOMIC)
        self.rank_statistics = []
        self.saved, self.last_ckpt = meta["iter"], str(path)
        if is_main_process():
            self._prune(runner, path, meta["iter"])

    def _prune(self, runner: TrainingRun, written: Path, iteration: int) -> None:
        folder, length = Path(runner.work_dir), len(runner.train_dataloader)
        older = [path for at, path in training_checkpoints(folder, length) if at <= iteration and path != written]
        if self.max_keep_ckpts > 0:
            for path in older[: max(0, len(older) + 1 - self.max_keep_ckpts)]:
                path.unlink(missing_ok=True)
        bests = best_checkpoints(folder, length, self._prefix)
        needed = {Path(runner.message_hub.runtime_info.get("best_ckpt", ""))}
        for at, _ in training_checkpoints(folder, length):  # each names the newest best weights up to it
            needed |= {path for _, path in [best for best in bests if best[0] <= at][-1:]}
        for _, path in bests:
            if path not in needed:
                path.unlink(missing_ok=True)

    # ---- going on --------------------------------------------------------------------------------------------------

    @property
    def _prefix(self) -> str:
        return f"best_{self.save_best}_".replace("/", "_")

    def best_so_far(self, runner: TrainingRun, path: Path) -> Path | None:
        """The file with the best weights of a run that goes on from a checkpoint; None where there are none yet.

        Args:
            runner: the run, which has taken up the checkpoint.
            path: the checkpoint; the best weights are beside it, or in a checkpoint of the same iteration.

        Raises:
            FBTError: if they are gone.
        """
        info, length = runner.message_hub.runtime_info, len(runner.train_dataloader)
        name = Path(info.get("best_ckpt", "")).name
        if not name.startswith(self._prefix) or not (match := _NAME.fullmatch(name)):  # none, or by another metric
            info.pop("best_ckpt", None), info.pop("best_score", None)
            return None
        if not is_number(info.get("best_score")):
            raise FBTError(f"--resume {path}: it does not say how good the best weights so far are")
        same = [file for at, file in training_checkpoints(path.parent, length) if at == _iteration(match, length)]
        found = next((file for file in (path.with_name(name), *same) if file.is_file()), None)
        if found is None:
            raise FBTError(
                f"--resume {path}: the best weights so far, {name}, are gone; "
                f"put that file beside it, or set {_HOOK}.save_best=None"
            )
        return found

    def go_on(self, runner: TrainingRun, path: Path, best: Path | None) -> None:
        """Lets a run's folder have what it goes on from, wherever that was.

        Args:
            runner: the run, which has taken up the checkpoint.
            path: the checkpoint.
            best: from :meth:`best_so_far`.
        """
        folder = Path(runner.work_dir)
        epoch = runner.epoch if isinstance(runner.train_loop, EpochBasedTrainLoop) else None
        own = folder / (path.name if _NAME.fullmatch(path.name) else _name(epoch, runner.iter))
        self.saved, self.last_ckpt = runner.iter, str(own)
        if not is_main_process():
            return
        if own.resolve() != path.resolve():
            write_atomic(own, path.read_bytes())
        if best is not None and not (target := Path(runner.message_hub.runtime_info["best_ckpt"])).is_file():
            left_out = ("optimizer", "param_schedulers", MEMORIES)
            save_plain(target, {k: v for k, v in read_checkpoint(best).items() if k not in left_out})


def not_finite(distiller: Any) -> str | None:
    """The first trained weight that is not finite, by name."""
    trained = {name: p.detach() for name, p in distiller.named_parameters() if p.requires_grad}
    finite = torch.stack([value.isfinite().all() for value in trained.values()]).tolist()
    return next((name for name, good in zip(trained, finite, strict=True) if not good), None)


@HOOKS.register_module()
class PlainCheckpointHook(Hook):
    """Keeps checkpoints to tensors and plain types, so that ``weights_only=True`` loads all of them."""

    priority = "LOWEST"
    _identity: Mapping[str, Any] | None = None

    def before_save_checkpoint(self, runner: TrainingRun, checkpoint: dict[str, Any]) -> None:
        info = plain(dict(checkpoint["message_hub"]["runtime_info"])) | {SECONDS: runner.seconds}
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
        hub = checkpoint["message_hub"]
        info = hub.get("runtime_info", {})
        hub.update(log_scalars={}, resumed_keys=dict.fromkeys(info, True))  # mmengine stumbles over any other
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
    matches = [(path, _NAME.fullmatch(path.name)) for path in work_dir.glob("*.pth")]
    return sorted((_iteration(match, epoch_length), path) for path, match in matches if match)


def _iteration(match: re.Match[str], epoch_length: int) -> int:
    return int(match["epoch"]) * epoch_length if match["iter"] is None else int(match["iter"])


def _name(epoch: int | None, iteration: int) -> str:
    return f"iter_{iteration}.pth" if epoch is None else f"epoch_{epoch}_iter_{iteration}.pth"


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
        names = ("best_*.pth", "metrics.jsonl", "summary.json", "student.safetensors", "config.py")
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


def save_student(model: StagedModel, path: Path, about: Mapping[str, Any]) -> None:
    """Writes a model as safetensors under its own (timm's) names, with what is needed to build it as metadata.

    Args:
        model: the student.
        path: the file.
        about: further metadata, such as classes and accuracy.
    """
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.net.state_dict().items()}
    first = {t.untyped_storage()._cdata: name for name, t in reversed(tensors.items())}
    for name, tensor in tensors.items():
        if first[tensor.untyped_storage()._cdata] != name:  # tied weights: the file has them under each of their names
            tensors[name] = tensor.clone()
    metadata: dict[str, Any] = {"name": model.name, "arguments": model.arguments, "mean": model.mean, "std": model.std}
    metadata |= {"input_size": model.input_size, **about}
    text = json.dumps(metadata, default=str)
    about_file = {METADATA_KEY: text, SIGNATURE_KEY: signature_of(tensors, text)}
    write_atomic(path, safetensors_bytes(tensors, metadata=about_file))
