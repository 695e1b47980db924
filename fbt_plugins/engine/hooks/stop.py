"""Signals: a run that is told to stop finishes its step, saves, and says how to go on."""

from __future__ import annotations

import signal
import time
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop
from torch import distributed as dist

from ...console import relative
from ...errors import SAME_SIGNAL, Interrupted, hearing
from ..training_run import TrainingRun

AGREE_EVERY = 10
"""Updates after which the processes of a job ask each other whether one of them was told to stop."""


class Signals:
    """Keeps a signal as a flag that a run looks at.

    A handler that raised could do so inside code that swallows exceptions, such as a callback of logging. A second
    SIGINT does raise KeyboardInterrupt.

    Attributes:
        received: number of the last signal; 0 is none.
    """

    def __init__(self) -> None:
        self.received = 0
        self._since = 0.0
        self._heard: AbstractContextManager[None] | None = None

    def __enter__(self) -> Signals:
        self._heard = hearing(self._handle)
        self._heard.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._heard is not None:
            self._heard.__exit__(None, None, None)
        self._heard = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and self.received and now - self._since > SAME_SIGNAL:
            raise KeyboardInterrupt
        if not self.received:
            self._since = now
        self.received = number


@HOOKS.register_module()
class StopHook(Hook):
    """Stops after the step in which a signal came, with a checkpoint; a second SIGINT stops at once.

    During validation it stops at once if the steps before it are saved, else after the next step.
    """

    priority = "LOWEST"  # after the checkpoint that may be due anyway

    def __init__(self) -> None:
        self._signals = Signals()
        self._agreed = 0
        self._updates = 0
        self._group: Any = None

    def before_train(self, runner: TrainingRun) -> None:
        self._signals.__enter__()
        if get_world_size() > 1:
            # Gloo, also where training uses NCCL, so that asking does not wait for a GPU.
            self._group = dist.new_group(backend="gloo")

    def after_train(self, runner: TrainingRun) -> None:
        self.close()

    def close(self) -> None:
        """Signals mean again what they meant before the run."""
        self._signals.__exit__()

    def after_train_iter(
        self, runner: TrainingRun, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        if not self._signals.received and self._group is None:
            return
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        end = len(runner.train_loop.dataloader) if by_epoch else runner.max_iters
        if (runner.iter + 1) % end and runner.optim_wrapper.should_update():
            self._updates += 1
            if self._told(ask=self._updates % AGREE_EVERY == 0):
                self._stop(runner, runner.epoch, runner.iter + 1)

    def after_train_epoch(self, runner: TrainingRun) -> None:
        if self._told():
            by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
            self._stop(runner, runner.epoch + by_epoch, runner.iter)

    def after_val_iter(self, runner: TrainingRun, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if self._signals.received and self._group is None and runner.checkpoints.saved == runner.iter:
            raise self._line(runner)

    def after_workers_lost(self, runner: TrainingRun) -> None:
        """A data loader's worker is gone, between two steps: whoever sent the signal may have sent it to all."""
        if self._signals.received and self._group is None and runner.optim_wrapper.should_update():
            self._stop(runner, runner.epoch, runner.iter)

    def _told(self, ask: bool = True) -> int:
        """The signal that any process of the job has received; 0 if none has, or if this was no time to ask."""
        if self._group is None:
            return self._signals.received
        if not ask:
            return 0
        flag = torch.tensor(self._signals.received)
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group)
        self._agreed = int(flag)  # a signal that came meanwhile is no part of it, and is asked for the next time
        return self._agreed

    def _stop(self, runner: TrainingRun, epoch: int, iteration: int) -> None:
        if runner.checkpoints.saved != iteration:
            runner.checkpoints.save_now(runner, epoch, iteration)
        raise self._line(runner)

    def _line(self, runner: TrainingRun) -> Interrupted:
        number, saved = self._agreed or self._signals.received, relative(runner.checkpoints.last_ckpt)
        how = "" if runner.cfg.get("resume") == "auto" else " with --resume"
        name = signal.Signals(number).name
        return Interrupted(f"stopped by {name}; saved {saved}; the same command{how} goes on", number)
