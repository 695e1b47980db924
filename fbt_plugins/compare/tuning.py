"""Tuning: which of several settings each method gets, by validation alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ..config.matrix import Matrix
from ..errors import FBTError
from ..report import Trial


@dataclass(frozen=True)
class Choice:
    """What was tried for a method, and what it gets.

    Attributes:
        method: its name.
        top1: of the student, the mean over seeds, by setting.
        settings: the overrides of the best setting; of equals, of the first.
        measure: what the figures are, "top1" or what else the runs measured first.
    """

    method: str
    top1: Mapping[str, float]
    settings: Mapping[str, Any]
    measure: str = "top1"

    @property
    def chosen(self) -> str:
        """The best setting's name."""
        return max(self.top1, key=lambda name: self.top1[name])


def choose(matrix: Matrix, trials: Sequence[Trial]) -> list[Choice]:
    """Takes each method's best setting.

    Args:
        matrix: of tuning: each of its "pairs" is a setting, with each method's overrides as ``methods``.
        trials: finished runs of it.

    Raises:
        FBTError: if a run is missing, so that one method would have had more tries than another, or if one has looked
            at anything but validation.
    """
    top1 = {(trial.pair, trial.method, trial.seed): trial.student for trial in trials}
    missing = [
        (*cell, seed) for cell in matrix.cells() for seed in matrix.seeds_of(cell[1]) if (*cell, seed) not in top1
    ]
    if missing:
        first = "{}/{}/seed {}".format(*missing[0])
        raise FBTError(f"tuning is not finished: {len(missing)} runs are missing, the first is {first}")
    if other := [trial for trial in trials if trial.split != "validation"]:
        raise FBTError(f"{other[0].name}: tuning is for validation, and this is of the {other[0].split} split")
    if len(found := {trial.measure for trial in trials}) > 1:
        raise FBTError(f"runs measured different things, {' and '.join(sorted(found))}: nothing can be chosen by them")
    choices = []
    for method in dict.fromkeys(method for _, method in matrix.cells()):
        names = [pair for pair in matrix.pairs if matrix.suits(pair, method)]
        means = {name: fmean(top1[name, method, seed] for seed in matrix.seeds_of(method)) for name in names}
        best = max(names, key=means.__getitem__)
        choices.append(Choice(method, means, matrix.pairs[best].get("methods", {}).get(method, {}), *found))
    return choices


def as_base(choices: Sequence[Choice]) -> dict[str, Any]:
    """What a config takes as one of its ``_base_``: by method the settings and how they came about, as ``_tuned``."""
    return {
        "_tuned": {
            c.method: {"settings": c.settings, "chosen": c.chosen, f"validation_{c.measure}": dict(c.top1)}
            for c in choices
        }
    }


def as_table(choices: Sequence[Choice]) -> list[str]:
    """A Markdown table, one row per method and one column per setting; the chosen one is bold."""
    names = list(dict.fromkeys(name for choice in choices for name in choice.top1))
    lines = [f"| method | {' | '.join(names)} | chosen |", f"|---|{'---|' * (len(names) + 1)}"]
    for choice in choices:
        cells = [f"{choice.top1[name]:.2f}" if name in choice.top1 else "–" for name in names]
        cells = [f"**{cell}**" if name == choice.chosen else cell for name, cell in zip(names, cells, strict=True)]
        lines.append(f"| {choice.method} | {' | '.join(cells)} | {_in_words(choice.settings)} |")
    return lines


def _in_words(settings: Mapping[str, Any], prefix: str = "") -> str:
    """ "model.task_loss.weight = 0.5"."""
    parts = []
    for key, value in settings.items():
        parts.append(_in_words(value, f"{prefix}{key}.") if isinstance(value, Mapping) else f"{prefix}{key} = {value}")
    return ", ".join(parts)
