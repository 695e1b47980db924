"""The loss guard: the part of every run that finds the first loss that is not finite."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from torch import Tensor
from torch import distributed as dist

from ...distill.loss_contract import StepLosses
from ...errors import FBTError
from ...models.weights import signature_of
from ..optim.wrapper import AlwaysOverflows
from ..training_run import TrainingRun

STATE = "loss_window"
"""Where a checkpoint keeps the losses of an interval that was not over."""


class NotFinite(FBTError):
    """A loss or gradient was not finite.

    Args:
        name: of the loss, or ``GRADIENT``.
        value: what it was.
        iteration: at which, counted from 0.
    """

    def __init__(self, name: str, value: float, iteration: int) -> None:
        what = "the gradient" if name == GRADIENT else f"the loss {name}"
        super().__init__(f"{what} was {value} at iteration {iteration + 1}; no update was made from it on")
        self.iteration = iteration


@dataclass(frozen=True)
class Interval:
    """Means of a log interval, over its iterations and all processes.

    Attributes:
        done: iterations of the run at its end.
        losses: by name.
        grad_norm: of the gradients; None where no norm was known.
        batch_size: images of the last batch, in this process.
    """

    done: int
    losses: dict[str, float]
    grad_norm: float | None
    batch_size: int


class LossGuard(Hook):
    """Keeps each step's losses, reads them once per interval, and ends the run at the first that is not finite.

    The optimizer wrapper has stopped all updates by then, so the weights are still those from before that loss. The
    runner registers the guard itself: no config can name it, change it or leave it out. Losses stay on the device
    between two looks, for reading them at each step would wait for the device; so up to an interval may be trained in
    vain. The guard also looks before each checkpoint and each validation.

    After each interval it calls the stage ``after_interval(runner, interval)`` of all hooks, with an :class:`Interval`.

    Attributes:
        interval: iterations between two looks; the runner takes the progress hook's where there is one.
    """

    priority = "BELOW_NORMAL"  # before the scheduler's step and before checkpoints

    def __init__(self) -> None:
        self.interval = 50
        self._window = LossWindow()
        self._schedules: list[tuple[int, Any]] = []
        self._state: dict[str, Any] = {}
        self._buffers = ""

    def before_train(self, runner: TrainingRun) -> None:
        self._end = runner.max_iters
        self._buffers = _buffers(runner)

    def before_train_epoch(self, runner: TrainingRun) -> None:
        self._keep_schedules(runner)

    def before_train_iter(self, runner: TrainingRun, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter % self.interval == 0 or not self._schedules:
            self._keep_schedules(runner)

    def after_train_iter(
        self, runner: TrainingRun, batch_idx: int, data_batch: Any = None, outputs: StepLosses | None = None
    ) -> None:
        if outputs is not None:
            self._window.add(outputs, getattr(runner.optim_wrapper, "grad_norm", None))
        done = runner.iter + 1
        if done % self.interval == 0 or done == self._end:
            columns, rows = self.check(done), len(self._window)
            if rows:
                self._end_interval(runner, Interval(done, *_means(columns), len(data_batch["inputs"])))

    def after_train(self, runner: TrainingRun) -> None:
        if not runner.resuming and (skipped := getattr(runner.optim_wrapper, "only_skipped", 0)):
            raise AlwaysOverflows(skipped, [])

    def check(self, done: int) -> dict[str, list[float]]:
        """The losses since the last interval; every process of a job must call it at the same iteration.

        Args:
            done: iterations that were made.

        Raises:
            NotFinite: with the first that was not finite.
        """
        columns, rows = self._window.read(), len(self._window)
        first = done - rows
        for row in range(rows):
            for name, values in columns.items():
                if not isfinite(values[row]):
                    raise NotFinite(name, values[row], first + row)
        return columns

    def has_moved(self, runner: TrainingRun) -> bool:
        """Whether any buffer is another than when the run began: BatchNorm statistics, say, or a loss's memory bank.

        Those that steps change have been changed by the bad one as well, and nothing knows what they were before it.
        """
        return _buffers(runner) != self._buffers

    def rewind(self, runner: TrainingRun, iteration: int, bad: int) -> None:
        """Takes schedules and losses back to what they were before an iteration; the weights are already that old.

        Args:
            runner: the run.
            iteration: at the earliest the first of the interval before that of ``bad``.
            bad: the iteration whose loss was not finite.
        """
        at, (states, groups) = [kept for kept in self._schedules if kept[0] <= iteration][-1]
        for group, kept in zip(runner.optim_wrapper.param_groups, groups, strict=True):
            group.update(kept)
        for schedule, state in zip(runner.param_schedulers or (), states, strict=True):
            schedule.load_state_dict(state)
            for _ in range(iteration - at if not schedule.by_epoch else 0):
                schedule.step()
        self._window.cut(max(0, iteration - bad // self.interval * self.interval))

    def before_write(self, runner: TrainingRun) -> None:
        """Takes the losses of all processes, before the first of them writes a checkpoint."""
        self._state = self._window.state_dict()

    def before_save_checkpoint(self, runner: TrainingRun, checkpoint: dict[str, Any]) -> None:
        if "optimizer" in checkpoint:  # one to resume from, not the best
            checkpoint[STATE] = self._state

    def after_load_checkpoint(self, runner: TrainingRun, checkpoint: dict[str, Any]) -> None:
        if runner.resuming and STATE in checkpoint:
            self._window.load_state_dict(checkpoint[STATE], runner.device)

    def _end_interval(self, runner: TrainingRun, interval: Interval) -> None:
        self._window.cut(0)
        self._schedules = self._schedules[-1:]
        runner.call_hook("after_interval", interval=interval)

    def _keep_schedules(self, runner: TrainingRun) -> None:
        """Keeps the schedules as they are at this iteration, for :meth:`rewind`."""
        groups = [{k: v for k, v in g.items() if k != "params"} for g in runner.optim_wrapper.param_groups]
        state = ([s.state_dict() for s in runner.param_schedulers or ()], groups)
        self._schedules.append((runner.iter, deepcopy(state)))


def _buffers(runner: TrainingRun) -> str:
    """sha256 of all buffers."""
    return signature_of(dict(runner.distiller.named_buffers()), "")


def _means(columns: dict[str, list[float]]) -> tuple[dict[str, float], float | None]:
    """Of each loss, and of the gradient's norm; the window has 0 where that is not known."""
    norms = [norm for norm in columns[GRADIENT] if norm]
    losses = {name: sum(values) / len(values) for name, values in columns.items() if name != GRADIENT}
    return losses, sum(norms) / len(norms) if norms else None


GRADIENT = "grad_norm"


class LossWindow:
    """A row per iteration since the last record: every loss, and the norm of the gradients where that is known.

    A row is what the step left on the device; nothing is copied or computed before it is read.
    """

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self._rows: list[tuple[Tensor, Tensor | None]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, losses: StepLosses, grad_norm: Tensor | None) -> None:
        """Keeps one iteration's losses."""
        if losses.names != self.names:
            self.names, self._rows = losses.names, []
        self._rows.append((losses.stacked, grad_norm))

    def read(self) -> dict[str, list[float]]:
        """A column per loss, the mean over all processes; waits for the device."""
        if not self._rows:
            return {name: [] for name in (*self.names, GRADIENT)}
        values = self._values()
        if get_world_size() > 1:
            dist.all_reduce(values)
            values /= get_world_size()
        return dict(zip((*self.names, GRADIENT), values.T.tolist(), strict=True))

    def cut(self, rows: int) -> None:
        """Keeps the first rows only."""
        del self._rows[rows:]

    def _values(self) -> Tensor:
        """(rows, losses + 1) on the device; the norm is 0 where it is not known."""
        losses = torch.stack([row for row, _ in self._rows])
        zero = losses.new_zeros(())
        norms = torch.stack([zero if norm is None else norm.float() for _, norm in self._rows])
        return torch.cat([losses, norms[:, None]], 1)

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs: each process's values, (processes, rows, losses + 1); all of them call it."""
        if not self._rows:
            return {"names": list(self.names), "values": torch.empty(get_world_size(), 0, 1)}
        own = self._values()
        values = [torch.empty_like(own) for _ in range(get_world_size())]
        if len(values) == 1:
            values = [own]
        else:
            dist.all_gather(values, own)
        return {"names": list(self.names), "values": torch.stack(values).cpu()}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Goes on with an interval."""
        self.names = tuple(state["names"])
        values = state["values"]
        own = values[get_rank()] if values.ndim == 3 else values  # once, all processes had one window
        self._rows = [(row[:-1], row[-1]) for row in own.to(device)]
