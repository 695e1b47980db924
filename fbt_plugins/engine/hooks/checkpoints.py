"""When a run saves checkpoints, which it keeps, and what goes into them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop

from ...errors import ConfigError, FBTError, is_number, nearest
from ...files import write_atomic
from ...models.weights import save_plain
from ..checkpoints.files import SECONDS, best_checkpoints, iteration_of, name_of, read_checkpoint, training_checkpoints
from ..checkpoints.identity import identity
from ..checkpoints.memories import MEMORIES, memories
from ..metrics import measures
from ..training_run import TrainingRun
from .batchnorm import gather_statistics
from .topk import TopK

_PATHS = ("best_ckpt", "last_ckpt")
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
        self._choose(runner)
        loop, (interval, by_epoch) = runner.train_loop, self._asked
        epochs = isinstance(loop, EpochBasedTrainLoop)
        if by_epoch and not epochs:
            raise ConfigError(f"{_HOOK}.by_epoch: this run counts iterations; leave it out")
        self.by_epoch = epochs if by_epoch is None else by_epoch
        self.interval = interval or (1 if self.by_epoch else loop.val_interval)
        self.filename_tmpl = "epoch_{}.pth" if self.by_epoch else "iter_{}.pth"
        if self.save_best is not None and runner.val_loop is not None:
            metrics = runner.val_loop.evaluator.metrics
            if all(isinstance(metric, TopK) for metric in metrics):  # another's names show in the first validation
                names = {
                    f"{model}_top{k}" for metric in metrics for k in metric.topk for model in runner.distiller.names
                }
                self._known(names)

    def _choose(self, runner: TrainingRun) -> None:
        """The metric that decides, where nobody has said it."""
        if self.save_best == AUTO:
            metrics = () if runner.val_loop is None else runner.val_loop.evaluator.metrics
            self.save_best = f"student_{measures(metrics)[0].key}"

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
        self.write(runner, name_of(epoch if by_epoch else None, iteration), {"epoch": epoch, "iter": iteration})

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
        self._choose(runner)
        info, length = runner.message_hub.runtime_info, len(runner.train_dataloader)
        name = Path(info.get("best_ckpt", "")).name
        if (
            not name.startswith(self._prefix) or (at := iteration_of(name, length)) is None
        ):  # none, or by another metric
            info.pop("best_ckpt", None), info.pop("best_score", None)
            return None
        if not is_number(info.get("best_score")):
            raise FBTError(f"--resume {path}: it does not say how good the best weights so far are")
        same = [file for other, file in training_checkpoints(path.parent, length) if other == at]
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
        folder, length = Path(runner.work_dir), len(runner.train_dataloader)
        epoch = runner.epoch if isinstance(runner.train_loop, EpochBasedTrainLoop) else None
        own = folder / (name_of(epoch, runner.iter) if iteration_of(path.name, length) is None else path.name)
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
