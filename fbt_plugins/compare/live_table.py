"""A matrix while it runs: a live table on a terminal, a line per finished run in a log."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.live import Live
from rich.table import Table

from ..console import console, say
from ..engine.hooks.teacher_check import NEAR_CHANCE
from ..jobs.study import Run
from ..report.cells import mean_sd
from ..report.comparison import measured
from ..report.intervals import spread
from .runs import Runs


class Screen:
    """Shows how far the runs of a matrix are.

    Args:
        runs: the runs.
    """

    def __init__(self, runs: Runs) -> None:
        self.runs = runs
        self._said: set[Run] = set(runs.done)
        self._live: Live | None = None

    @contextmanager
    def live(self) -> Iterator[None]:
        """Keeps the table on the terminal."""
        if not console.is_terminal:
            yield
            return
        with Live(self.table(), console=console, refresh_per_second=2) as self._live:
            yield
            self._live.update(self.table())

    def update(self) -> None:
        """Shows what has changed."""
        runs = self.runs
        for run in runs.wanted:
            if run not in self._said and (run in runs.done or run in runs.failed):
                self._said.add(run)
                what = f"{runs.done[run].student:.2f} %" if run in runs.done else f"failed: {runs.failed[run]}"
                if (warning := _warning(runs.folder_of(run) / "output.txt")) and run in runs.done:
                    what += f"; {warning}"
                say(f"[{len(runs.wanted) - len(runs.left)}/{len(runs.wanted)}] {run}: {what}")
        if self._live is not None:
            self._live.update(self.table())

    def table(self) -> Table:
        """A row per cell; where that is more than the terminal has, only of cells that run or have failed."""
        runs = self.runs
        cells: dict[tuple[str, str], list[Run]] = {}
        for run in runs.wanted:
            cells.setdefault((run.pair, run.method), []).append(run)
        running = {process.claim.run for process in runs.running}
        shown = cells
        if len(cells) > console.height - 7:
            shown = {cell: own for cell, own in cells.items() if any(r in running or r in runs.failed for r in own)}
        hidden = f"; cells not shown: {len(cells) - len(shown)}" if len(shown) < len(cells) else ""
        caption = f"{len(runs.left)} of {len(runs.wanted)} runs left{self._eta()}{hidden}"
        table = Table(caption=caption, caption_justify="left")
        for column in ("pair", "method"):
            table.add_column(column)
        for column in ("done", "running", "failed", f"{measured(list(runs.done.values()))} %"):
            table.add_column(column, justify="right")
        for (pair, method), own in shown.items():
            done = [runs.done[run].student for run in own if run in runs.done]
            counts = [str(sum(run in group for run in own) or "") for group in (running, runs.failed)]
            table.add_row(pair, method, f"{len(done)}/{len(own)}", *counts, mean_sd(spread(done)))
        return table

    def _eta(self) -> str:
        seconds, busy = self.runs.mean_seconds(), len(self.runs.running) + self.runs.elsewhere
        if seconds is None or not busy or not self.runs.left:
            return ""
        left = seconds * len(self.runs.left) / busy
        end = time.strftime("%a %H:%M", time.localtime(time.time() + left))
        return f", about {left / 3600:.1f} h ({end})"


def _warning(output: Path) -> str:
    """What a run said about its teacher; empty where that was nothing to worry about."""
    with suppress(OSError):
        found = re.search(rf"{NEAR_CHANCE}[^│\n]*", output.read_text(encoding="utf-8", errors="replace"))
        return found[0].rstrip() if found else ""
    return ""
