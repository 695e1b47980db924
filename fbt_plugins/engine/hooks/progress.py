"""Progress of a run: a live bar, a line per validation, metrics.jsonl, and an end at the first NaN."""

from __future__ import annotations

import json
import time
from copy import deepcopy
from math import isfinite
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ...console import console, say
from ...distill.loss_contract import StepLosses
from ...errors import FBTError
from ...files import write_atomic
from ..training_run import TrainingRun
from .loss_window import GRADIENT, LossWindow
from .run_tables import header

STATE = "loss_window"


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


@HOOKS.register_module()
class ProgressHook(Hook):
    """Shows and records how a run goes.

    Losses stay on the device and are read once per interval: reading them at each step would wait for the device.

    Args:
        interval: iterations between two records in ``metrics.jsonl``.
    """

    priority = "BELOW_NORMAL"

    def __init__(self, interval: int = 50) -> None:
        self.interval = interval
        self._window = LossWindow()
        self._schedules: list[tuple[int, Any]] = []
        self._bar: Progress | None = None

    # ---- the run ---------------------------------------------------------------------------------------------------

    def before_run(self, runner: TrainingRun) -> None:
        if hasattr(runner.train_loop, "dataloader"):
            header(runner)

    def before_train(self, runner: TrainingRun) -> None:
        self._file = Path(runner.work_dir) / "metrics.jsonl"
        self._last, self._last_iteration, self._end = time.perf_counter(), runner.iter, runner.max_iters
        if is_main_process():
            self._forget_after(runner.iter)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=18),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
            refresh_per_second=4,
            disable=not (is_main_process() and console.is_terminal),
        )
        self._task = self._bar.add_task(self._title(runner), total=runner.max_iters, completed=runner.iter, note="")
        self._advance = None if self._bar.disable else self._bar.advance
        self._bar.start()

    def before_train_iter(self, runner: TrainingRun, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter % self.interval == 0 or not self._schedules:
            self._keep_schedules(runner)

    def before_train_epoch(self, runner: TrainingRun) -> None:
        self._keep_schedules(runner)
        if self._bar is not None:
            self._bar.update(self._task, description=self._title(runner))

    def after_train_iter(
        self, runner: TrainingRun, batch_idx: int, data_batch: Any = None, outputs: StepLosses | None = None
    ) -> None:
        if outputs is not None:
            self._window.add(outputs, getattr(runner.optim_wrapper, "grad_norm", None))
        if self._advance is not None:
            self._advance(self._task)
        done = runner.iter + 1
        if done % self.interval == 0 or done == self._end:
            self._record(runner, done, len(data_batch["inputs"]))

    def before_val_epoch(self, runner: TrainingRun) -> None:
        self._paused = time.perf_counter()

    def after_val_epoch(self, runner: TrainingRun, metrics: dict[str, float] | None = None) -> None:
        self._last += time.perf_counter() - self._paused  # images per second are those of training
        top1 = {k.removesuffix("_top1"): v for k, v in (metrics or {}).items() if k.endswith("_top1")}
        shown = "  ".join(f"{name} {value:.2f} %" for name, value in top1.items())
        say(f"{self._title(runner, done=True)}  validation top-1: {shown}")
        self._write({"iter": runner.iter, "epoch": runner.epoch, **{f"val/{k}": v for k, v in (metrics or {}).items()}})
        runner.visualizer.add_scalars({f"val/{k}": v for k, v in (metrics or {}).items()}, step=runner.iter)

    def after_train(self, runner: TrainingRun) -> None:
        self.close()

    def close(self) -> None:
        """Takes the bar off the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._advance = None

    # ---- losses ----------------------------------------------------------------------------------------------------

    def check(self, done: int) -> dict[str, list[float]]:
        """The losses since the last record; every process of a job must call it at the same iteration.

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

    def _record(self, runner: TrainingRun, done: int, batch_size: int) -> None:
        columns, rows = self.check(done), len(self._window)
        if not rows:
            return
        norms = [norm for norm in columns.pop(GRADIENT) if norm]  # 0 where it is not known
        means = {name: sum(values) / rows for name, values in columns.items()}
        record = {"loss": sum(means.values())} | means | ({GRADIENT: sum(norms) / len(norms)} if norms else {})
        now = time.perf_counter()
        rate = batch_size * (done - self._last_iteration) * runner.world_size / max(now - self._last, 1e-9)
        record |= {"lr": runner.optim_wrapper.param_groups[0]["lr"], "images_per_second": rate}
        self._window.cut(0)
        self._schedules = self._schedules[-1:]
        self._last, self._last_iteration = now, done
        if self._bar is not None:
            self._bar.update(self._task, note=f"loss {record['loss']:.3f} ({_by_edge(means)})  {rate:.0f} img/s")
        self._write({"iter": done, "epoch": runner.epoch + 1, **{f"train/{k}": v for k, v in record.items()}})
        runner.visualizer.add_scalars({f"train/{k}": v for k, v in record.items()}, step=done)

    def _keep_schedules(self, runner: TrainingRun) -> None:
        """What the schedules are at this iteration, in case that later ones must be taken back."""
        groups = [{k: v for k, v in g.items() if k != "params"} for g in runner.optim_wrapper.param_groups]
        state = ([s.state_dict() for s in runner.param_schedulers or ()], groups)
        self._schedules.append((runner.iter, deepcopy(state)))

    def rewind(self, runner: TrainingRun, iteration: int, bad: int) -> None:
        """Takes back schedules and losses to what they were.

        Args:
            runner: the run.
            iteration: before which; not before the last record but one.
            bad: the one since the last record that was not finite.
        """
        at, (states, groups) = [kept for kept in self._schedules if kept[0] <= iteration][-1]
        for group, kept in zip(runner.optim_wrapper.param_groups, groups, strict=True):
            group.update(kept)
        for schedule, state in zip(runner.param_schedulers or (), states, strict=True):
            schedule.load_state_dict(state)
            for _ in range(iteration - at if not schedule.by_epoch else 0):
                schedule.step()
        self._window.cut(max(0, iteration - bad // self.interval * self.interval))

    def before_save_checkpoint(self, runner: TrainingRun, checkpoint: dict[str, Any]) -> None:
        checkpoint[STATE] = self._window.state_dict()

    def after_load_checkpoint(self, runner: TrainingRun, checkpoint: dict[str, Any]) -> None:
        if runner.resuming and STATE in checkpoint:
            self._window.load_state_dict(checkpoint[STATE], runner.device)

    # ---- metrics.jsonl ---------------------------------------------------------------------------------------------

    def _write(self, record: dict[str, Any]) -> None:
        if is_main_process():
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def _forget_after(self, iteration: int) -> None:
        """Drops records of steps and validations that a resumed run will make again."""
        if self._file.exists():
            records = [(line, _iteration(line)) for line in self._file.read_text(encoding="utf-8").splitlines()]
            kept = [
                line
                for line, at in records
                if at is not None and (at < iteration or (at == iteration and '"val/' not in line))
            ]
            write_atomic(self._file, "".join(line + "\n" for line in kept if iteration))

    @staticmethod
    def _title(runner: TrainingRun, done: bool = False) -> str:
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            return f"iteration {runner.iter:>{len(str(runner.max_iters))}}/{runner.max_iters}" if done else "training"
        epoch = runner.epoch + (0 if done else 1)
        return f"epoch {epoch:>{len(str(runner.max_epochs))}}/{runner.max_epochs}"


def _by_edge(means: dict[str, float]) -> str:
    """The parts of a loss, an edge each: "task 0.61, T→S 0.40"."""
    sums: dict[str, float] = {}
    for name, value in means.items():
        edge = name.partition("/")[0]
        sums[edge] = sums.get(edge, 0.0) + value
    return ", ".join(f"{_short(edge)} {value:.2f}" for edge, value in sums.items())


def _short(edge: str) -> str:
    giver, found, receiver = edge.partition("_to_")
    return f"{giver[0].upper()}→{receiver[0].upper()}" if found else edge


def _iteration(line: str) -> int | None:
    try:
        return json.loads(line)["iter"]
    except (json.JSONDecodeError, KeyError, TypeError):  # a run was stopped while it wrote
        return None
