"""Progress of a run: a live bar, a line per validation, and metrics.jsonl."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from .screen import console, header, say


@HOOKS.register_module()
class ProgressHook(Hook):
    """Shows and records how a run goes.

    Losses are summed on the device and read once per interval: reading them at each step would wait for the device.

    Args:
        interval: iterations between two records in ``metrics.jsonl``.
    """

    priority = "BELOW_NORMAL"

    def __init__(self, interval: int = 50) -> None:
        self.interval = interval
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        self._bar: Progress | None = None

    def before_train(self, runner: Any) -> None:
        self._file = Path(runner.work_dir) / "metrics.jsonl"
        self._started = self._last = time.perf_counter()
        if is_main_process():
            self._forget_after(runner.iter)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
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
        self._bar.start()

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict[str, Tensor] | None = None
    ) -> None:
        for name, value in (outputs or {}).items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._steps += 1
        if self._bar is not None:
            self._bar.advance(self._task)
        if (runner.iter + 1) % self.interval == 0 or runner.iter + 1 == runner.max_iters:
            self._record_losses(runner, runner.iter + 1, len(data_batch["inputs"]))

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        top1 = {k.removesuffix("_top1"): v for k, v in (metrics or {}).items() if k.endswith("_top1")}
        shown = "  ".join(f"{name} {value:.2f} %" for name, value in top1.items())
        say(f"{self._title(runner, done=True)}  validation top-1: {shown}")
        self._write({"iter": runner.iter, "epoch": runner.epoch, **{f"val/{k}": v for k, v in (metrics or {}).items()}})
        runner.visualizer.add_scalars({f"val/{k}": v for k, v in (metrics or {}).items()}, step=runner.iter)

    def after_train(self, runner: Any) -> None:
        self.close()

    def close(self) -> None:
        """Takes the bar off the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def before_train_epoch(self, runner: Any) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=self._title(runner))

    def _record_losses(self, runner: Any, iteration: int, batch_size: int) -> None:
        names = list(self._sums)
        values = (torch.stack([self._sums[n].float() for n in names]) / self._steps).tolist()
        now = time.perf_counter()
        rate = batch_size * self._steps * runner.world_size / max(now - self._last, 1e-9)
        record: dict[str, Any] = dict(zip(names, values, strict=True))
        record |= {"lr": runner.optim_wrapper.param_groups[0]["lr"], "images_per_second": rate}
        self._sums, self._steps, self._last = {}, 0, now
        if self._bar is not None:
            self._bar.update(self._task, note=f"loss {record['loss']:.3f}  {rate:.0f} img/s")
        self._write({"iter": iteration, "epoch": runner.epoch + 1, **{f"train/{k}": v for k, v in record.items()}})
        runner.visualizer.add_scalars({f"train/{k}": v for k, v in record.items()}, step=iteration)

    def _write(self, record: dict[str, Any]) -> None:
        if is_main_process():
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def _forget_after(self, iteration: int) -> None:
        """Drops records of steps that a resumed run will take again, and all of an earlier run in this folder."""
        if self._file.exists():
            lines = self._file.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _whole(line) and json.loads(line)["iter"] <= iteration]
            self._file.write_text("".join(line + "\n" for line in kept if iteration), encoding="utf-8")

    @staticmethod
    def _title(runner: Any, done: bool = False) -> str:
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            return f"iteration {runner.iter:>{len(str(runner.max_iters))}}/{runner.max_iters}"
        epoch = runner.epoch + (0 if done else 1)
        return f"epoch {epoch:>{len(str(runner.max_epochs))}}/{runner.max_epochs}"

    def before_run(self, runner: Any) -> None:
        if hasattr(runner.train_loop, "dataloader"):
            header(runner)


def _whole(line: str) -> bool:
    try:
        json.loads(line)
    except json.JSONDecodeError:  # a run was stopped while it wrote
        return False
    return True
