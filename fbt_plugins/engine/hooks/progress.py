"""Progress of a run: a live bar, a line per validation, metrics.jsonl."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ...console import console, say
from ...files import write_atomic
from ..metrics import measures
from ..training_run import TrainingRun
from .loss_guard import GRADIENT, Interval
from .run_tables import header


@HOOKS.register_module()
class ProgressHook(Hook):
    """Shows and records how a run goes.

    Args:
        interval: iterations between two records in ``metrics.jsonl``, and between two looks of the loss guard, which
            reads the losses that are recorded here.
    """

    priority = "BELOW_NORMAL"

    def __init__(self, interval: int = 50) -> None:
        self.interval = interval
        self._bar: Progress | None = None

    # ---- the run ---------------------------------------------------------------------------------------------------

    def before_run(self, runner: TrainingRun) -> None:
        if hasattr(runner.train_loop, "dataloader"):
            header(runner)

    def before_train(self, runner: TrainingRun) -> None:
        self._file = Path(runner.work_dir) / "metrics.jsonl"
        self._last, self._last_iteration = time.perf_counter(), runner.iter
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

    def before_train_epoch(self, runner: TrainingRun) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=self._title(runner))

    def after_train_iter(
        self, runner: TrainingRun, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if self._advance is not None:
            self._advance(self._task)

    def after_interval(self, runner: TrainingRun, interval: Interval) -> None:
        """Records an interval's mean losses; the loss guard calls it."""
        record = {"loss": sum(interval.losses.values())} | interval.losses
        if interval.grad_norm is not None:
            record[GRADIENT] = interval.grad_norm
        now, iterations = time.perf_counter(), interval.done - self._last_iteration
        rate = interval.batch_size * iterations * runner.world_size / max(now - self._last, 1e-9)
        record |= {"lr": runner.optim_wrapper.param_groups[0]["lr"], "images_per_second": rate}
        self._last, self._last_iteration = now, interval.done
        if self._bar is not None:
            parts = _by_edge(interval.losses)
            self._bar.update(self._task, note=f"loss {record['loss']:.3f} ({parts})  {rate:.0f} img/s")
        self._write({"iter": interval.done, "epoch": runner.epoch + 1, **{f"train/{k}": v for k, v in record.items()}})
        runner.visualizer.add_scalars({f"train/{k}": v for k, v in record.items()}, step=interval.done)

    def before_val_epoch(self, runner: TrainingRun) -> None:
        self._paused = time.perf_counter()

    def after_val_epoch(self, runner: TrainingRun, metrics: dict[str, float] | None = None) -> None:
        self._last += time.perf_counter() - self._paused  # images per second are those of training
        for key, title in measures(runner.val_loop.evaluator.metrics):
            found = {k.removesuffix(f"_{key}"): v for k, v in (metrics or {}).items() if k.endswith(f"_{key}")}
            shown = "  ".join(f"{name} {value:.2f} %" for name, value in found.items())
            say(f"{self._title(runner, done=True)}  validation {title}: {shown}")
        self._write({"iter": runner.iter, "epoch": runner.epoch, **{f"val/{k}": v for k, v in (metrics or {}).items()}})
        runner.visualizer.add_scalars({f"val/{k}": v for k, v in (metrics or {}).items()}, step=runner.iter)

    def after_train(self, runner: TrainingRun) -> None:
        self.close()

    def close(self) -> None:
        """Takes the bar off the terminal."""
        if self._bar is not None:
            with suppress(OSError):  # the terminal was closed
                self._bar.stop()
            self._bar = self._advance = None

    # ---- metrics.jsonl ---------------------------------------------------------------------------------------------

    def _write(self, record: dict[str, Any]) -> None:
        if is_main_process():
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def _forget_after(self, iteration: int) -> None:
        """Drops records of steps and validations that a resumed run will make again."""
        if self._file.exists():
            text = self._file.read_text(encoding="utf-8", errors="surrogateescape")  # one bad byte costs one line
            records = [(line, _iteration(line)) for line in text.split("\n")]
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
        line.encode()
        return int(json.loads(line)["iter"])
    except (ValueError, KeyError, TypeError, RecursionError):  # a run was stopped while it wrote
        return None
