"""mmengine's training loops, which can go on at any iteration, and its validation loop without the teacher."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, ValLoop
from mmengine.runner.amp import autocast
from mmengine.runner.base_loop import BaseLoop
from mmengine.runner.utils import calc_dynamic_intervals

from ..distill.build import TEACHER
from ..errors import ConfigError, FBTError, text_of
from .data_workers import begin
from .loaders import sampler_of
from .metrics import fill_banks, wants
from .training_run import TrainingRun


def no_batches(where: str, images: int, batch_size: int | None, drop_last: bool) -> str:
    """Says that a loader has nothing to give.

    Args:
        where: its key in the config.
        images: of each process.
        batch_size, drop_last: its own.
    """
    if images and drop_last:
        return (
            f"{where}: {images:,} images make no batch of {batch_size:,}, and drop_last=True drops what is left; "
            "set a smaller batch_size, or drop_last=False"
        )
    return f"{where}: it has no batch at all ({images:,} images)"


def with_batches(loop: Any, where: str) -> Any:
    """A loop whose loader has something to give.

    Raises:
        ConfigError: if it has no batch: the loop would do nothing, and call that done.
    """
    loader = getattr(loop, "dataloader", None)
    if loader is not None and len(loader) == 0:
        images = len(loader.sampler) if loader.batch_size is not None else 0
        raise ConfigError(no_batches(where, images, loader.batch_size, loader.drop_last))
    return loop


class _Seeking:
    """What both loops share: batches of an epoch from any position on."""

    dataloader: Any
    runner: TrainingRun
    _iter: int

    def batches(self, epoch: int, done: int) -> Iterator[Any]:
        """The batches of an epoch, without the first ``done``, none of which is read.

        Raises:
            FBTError: if the order of the images cannot be taken up in the middle.
        """
        sampler = sampler_of(self.dataloader)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        if done:
            if not hasattr(sampler, "seek"):
                name = type(sampler).__name__
                raise FBTError(f"--resume in the middle of an epoch: {name} has no seek(); use SeededSampler")
            sampler.seek(done * self.dataloader.batch_size)
        batches, end = begin(self.dataloader), object()
        while (batch := self._next(batches, end)) is not end:
            yield batch

    def _next(self, batches: Iterator[Any], end: object) -> Any:
        try:
            return next(batches, end)
        except RuntimeError as error:
            if "DataLoader worker" in text_of(error):
                self.runner.call_hook("after_workers_lost")
            raise

    def validate(self) -> None:
        """Runs a validation, unless a loss was not finite: that ends the run before its model is called the best."""
        if self.runner.val_loop is not None:
            self.runner.check_losses(self._iter)
            self.runner.val_loop.run()


@LOOPS.register_module()
class EpochLoop(_Seeking, EpochBasedTrainLoop):
    """mmengine's EpochBasedTrainLoop (same arguments), which starts at the iteration that a checkpoint was taken at."""

    def run(self) -> Any:
        self.runner.call_hook("before_train")
        self.runner.start_clock()
        self.runner.optim_wrapper.period = len(self.dataloader)
        if self._epoch and self._iter == self._epoch * len(self.dataloader):
            self._validate()  # a checkpoint of an epoch's end is taken before its validation
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self._decide_current_val_interval()
            self._validate()
        self.runner.call_hook("after_train")
        return self.runner.model

    def run_epoch(self) -> None:
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        done = self._iter - self._epoch * len(self.dataloader)
        for index, batch in enumerate(self.batches(self._epoch, done), start=done):
            self.run_iter(index, batch)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1

    def _validate(self) -> None:
        due = self._epoch >= self.val_begin
        due = due and (self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs)
        if due:
            self.validate()


@LOOPS.register_module()
class IterLoop(_Seeking, IterBasedTrainLoop):
    """mmengine's IterBasedTrainLoop (same arguments), which starts at the iteration that a checkpoint was taken at.

    mmengine's reads all batches up to there again, and sleeps for two seconds wherever the data end.
    """

    def __init__(
        self,
        runner: TrainingRun,
        dataloader: Any,
        max_iters: int,
        val_begin: int = 1,
        val_interval: int = 1000,
        dynamic_intervals: list[tuple[int, int]] | None = None,
    ) -> None:
        BaseLoop.__init__(self, runner, dataloader)
        self._max_iters, self._max_epochs = int(max_iters), 1
        self._epoch = self._iter = 0
        self.val_begin, self.val_interval = val_begin, val_interval
        self.stop_training = False
        self.dynamic_milestones, self.dynamic_intervals = calc_dynamic_intervals(val_interval, dynamic_intervals)

    def run(self) -> Any:
        self.runner.call_hook("before_train")
        self.runner.start_clock()
        self.runner.call_hook("before_train_epoch")
        if self._iter:
            self._validate()  # a checkpoint is taken before the validation of its iteration
        batches = self._endless()
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(batches))
            self._decide_current_val_interval()
            self._validate()
        self.runner.call_hook("after_train_epoch")
        self.runner.call_hook("after_train")
        return self.runner.model

    def _endless(self) -> Iterator[Any]:
        while True:
            yield from self.batches(*divmod(self._iter, len(self.dataloader)))

    def _validate(self) -> None:
        due = self._iter >= self.val_begin
        due = due and (self._iter % self.val_interval == 0 or self._iter == self._max_iters)
        if due:
            self.validate()


@LOOPS.register_module()
class ValidationLoop(ValLoop):
    """mmengine's ValLoop (same arguments); the teacher's metrics are the run's own, which has evaluated it once."""

    runner: TrainingRun

    def run(self) -> dict[str, float]:
        runner = self.runner
        runner.call_hook("before_val")
        runner.call_hook("before_val_epoch")
        teacher = runner.teacher_metrics
        names = [name for name in runner.distiller.names if name != TEACHER]
        runner.model.eval()
        told = wants(self.evaluator.metrics)
        with torch.no_grad(), autocast(enabled=self.fp16):
            fill_banks(self.evaluator.metrics, runner.distiller, names)
        for index, batch in enumerate(begin(self.dataloader)):
            runner.call_hook("before_val_iter", batch_idx=index, data_batch=batch)
            with torch.no_grad(), autocast(enabled=self.fp16):
                outputs = runner.distiller.val_step(batch, names, told)
            self.evaluator.process(outputs, batch)
            runner.call_hook("after_val_iter", batch_idx=index, data_batch=batch, outputs=outputs)
        metrics = self.evaluator.evaluate(len(self.dataloader.dataset)) | teacher
        runner.call_hook("after_val_epoch", metrics=metrics)
        runner.call_hook("after_val")
        return metrics
