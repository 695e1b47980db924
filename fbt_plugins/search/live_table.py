"""A search while it runs: a live table and a bar on a terminal, a line per trial in a log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..console import console, say
from ..jobs.study import Slot
from .results import in_words, rows
from .search import Search


class SearchScreen:
    """Shows how far a search is.

    Args:
        search: the trials.
    """

    def __init__(self, search: Search) -> None:
        self.search = search
        self._said: set[Slot] = set()
        self._live: Live | None = None
        columns = TextColumn("trials"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self._bar = Progress(*columns, console=console)
        self._task = self._bar.add_task("", total=len(search.wanted))

    @contextmanager
    def live(self) -> Iterator[None]:
        """Keeps table and bar on the terminal."""
        if not console.is_terminal:
            yield
            return
        with Live(self._all(), console=console, refresh_per_second=2) as self._live:
            yield
            self._live.update(self._all())

    def update(self) -> None:
        """Shows what has changed."""
        search = self.search
        ended = [slot for slot in search.wanted if slot in search.tried or slot in search.failed]
        for slot in ended:
            if slot in self._said:
                continue
            self._said.add(slot)
            where = f"[{len(ended)}/{len(search.wanted)}] {slot}"
            if slot in search.failed:
                say(f"{where}: failed: {search.failed[slot]}")
                continue
            tried = search.tried[slot]
            figures = ", ".join(
                f"{name} {tried.figures.get(name, float('nan')):g}" for name in search.settings.objectives
            )
            pruned = "" if tried.epoch is None else f", pruned after epoch {tried.epoch}"
            say(f"{where}: {in_words(tried.options, search.space)}: {figures}{pruned}")
        self._bar.update(self._task, completed=len(ended))
        if self._live is not None:
            self._live.update(self._all())

    def _all(self) -> Group:
        return Group(self.table(), self._bar)

    def table(self) -> Table:
        """The best trials, as many as there is room for."""
        found = list(rows(self.search, max(console.height - 8, 3)))
        running, failed = len(self.search.running), len(self.search.failed)
        caption = f"{running} running here, {self.search.elsewhere} elsewhere, {failed} failed"
        table = Table(caption=caption, caption_justify="left")
        for name in found[0] if found else ("trial", "tried"):
            table.add_column(name, justify="left" if name in ("tried", "") else "right")
        for row in found:
            table.add_row(*(f"{v:.2f}" if isinstance(v, float) else "–" if v is None else str(v) for v in row.values()))
        return table
