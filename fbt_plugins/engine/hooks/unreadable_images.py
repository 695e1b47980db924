"""Images that turned out unreadable while a run wanted them: counted over all processes, and named once."""

from __future__ import annotations

from typing import Any

from mmengine.dist import all_reduce
from mmengine.hooks import Hook

from ...console import say
from ..training_run import TrainingRun

_NAMED = 20


def unreadable(dataset: Any) -> list[int]:
    """Positions of the images that any process could not read so far; all processes must ask together."""
    failed = getattr(dataset, "failed", None)
    if failed is None:
        return []
    failed = failed.int()
    all_reduce(failed, op="max")
    return failed.nonzero().flatten().tolist()


class UnreadableImagesHook(Hook):
    """Says after each epoch which images could not be read in it; the next ones were shown in their places.

    Attributes:
        counts: how many there were, by split.
    """

    priority = "VERY_LOW"

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._said: set[str] = set()

    def look(self, dataset: Any, split: str) -> None:
        """Says what is new; all processes look together."""
        names = [dataset.name_of(position) for position in unreadable(dataset)]
        new = [name for name in names if name not in self._said]
        if names:
            self.counts[split] = len(names)
        self._said |= set(new)
        if new:
            say(f"data     {len(new):,} images of {split} cannot be read; the next is shown in the place of each")
        for name in new[:_NAMED]:
            say(f"           {name}")
        if new[_NAMED:]:
            say(f"           and {len(new) - _NAMED:,} more")

    def after_train_epoch(self, runner: TrainingRun) -> None:
        self.look(runner.train_dataloader.dataset, "train")

    def after_val_epoch(self, runner: TrainingRun, metrics: Any = None) -> None:
        self.look(runner.val_dataloader.dataset, "val")

    def after_train(self, runner: TrainingRun) -> None:
        self.after_train_epoch(runner)  # of loops by iteration
