"""Trials of a matrix as one table per pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, median
from typing import Any

from .intervals import Interval, interval, paired
from .results import TITLES, Trial


def measured(trials: Sequence[Trial]) -> str:
    """What the figures of trials are, in words: "top-1"."""
    found = dict.fromkeys(TITLES.get(trial.measure, trial.measure) for trial in trials)
    return " or ".join(found) or TITLES["top1"]


@dataclass(frozen=True)
class Row:
    """A method of one pair.

    Attributes:
        method, about: its name, and in words.
        top1: of the student.
        fusion: of the fusion model, where there is one.
        differences: by control, seed by seed.
        published: the published figure, and where it is from; None where there is none.
        cost: of a training step relative to the first control's on the same hardware; None where that is not known.
        configs: how many different configs its seeds were run with; more than 1 is a mistake.
        cka: the first seed that has maps (see :class:`Trial`), and these; None where no seed has.
        splices: of its fusion models (see :class:`Trial`), of the first run that says it; None where none does.
    """

    method: str
    about: str
    top1: Interval
    fusion: Interval | None
    differences: dict[str, Interval | None]
    published: dict[str, Any] | None
    cost: float | None
    configs: int
    cka: dict[str, Any] | None
    splices: dict[str, Any] | None = None

    @property
    def what(self) -> str:
        """The method in words, with the splices of its fusion models where these words leave them open."""
        found = dict.fromkeys(splice for splices in (self.splices or {}).values() for splice in splices)
        if not found or any(splice in self.about for splice in found):
            return self.about
        return f"{self.about}: {', '.join(found)}"


@dataclass(frozen=True)
class Pair:
    """All methods of one pair.

    Attributes:
        name: "teacher_student".
        teacher: its mean top-1 on the final split; None where only the student alone was trained.
        rows: one per method, in the order of the matrix.
        trials: the finished runs behind them.
        elsewhere: published figures of methods that have no row, by method, each with its source.
    """

    name: str
    teacher: float | None
    rows: list[Row]
    trials: list[Trial]
    elsewhere: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Teachers:
    """Pairs that have one student: which teacher is better for it.

    Attributes:
        student: its name.
        pairs: one per teacher, in the order of the matrix.
        differences: by method and pair, to the first pair that has the method, seed by seed; None for that one, and
            where no seed is in both.
    """

    student: str
    pairs: list[Pair]
    differences: dict[str, dict[str, Interval | None]]


@dataclass(frozen=True)
class Comparison:
    """A matrix as far as it is finished.

    Attributes:
        name: of the matrix.
        pairs: those with at least one finished run.
        teachers: of each student that has several, by methods that at least two of them have.
        missing: runs that are not finished, by name.
        controls: what each method is compared with, in words, by method.
        others: the same runs by what else they measured, one comparison for each measure.
    """

    name: str
    pairs: list[Pair]
    teachers: list[Teachers]
    missing: list[str]
    controls: dict[str, str]
    others: list[Comparison] = field(default_factory=list)

    @property
    def trials(self) -> list[Trial]:
        return [trial for pair in self.pairs for trial in pair.trials]

    @property
    def measure(self) -> str:
        """What the figures are, in words: "top-1"."""
        return measured(self.trials)

    @property
    def methods(self) -> list[str]:
        """All that occur, in the order of the matrix."""
        return list(dict.fromkeys(row.method for pair in self.pairs for row in pair.rows))

    def otherwise(self, pair: Pair) -> list[tuple[Comparison, Pair]]:
        """A pair by what else its runs measured."""
        return [(other, same) for other in self.others for same in other.pairs if same.name == pair.name]

    def gain(self, method: str, control: str) -> tuple[float, int] | None:
        """The mean difference over all pairs that have both, and how many these are."""
        rows = [row for pair in self.pairs for row in pair.rows if row.method == method]
        found = [d.mean for row in rows if (d := row.differences.get(control)) is not None]
        return (fmean(found), len(found)) if found else None

    def as_json(self) -> dict[str, Any]:
        """Everything but the trials themselves, which have files of their own."""
        pairs = [
            {"name": p.name, "teacher": p.teacher, "rows": [asdict(row) for row in p.rows], "elsewhere": p.elsewhere}
            for p in self.pairs
        ]
        teachers = {
            found.student: {
                method: {name: d and asdict(d) for name, d in row.items()} for method, row in found.differences.items()
            }
            for found in self.teachers
        }
        others = {other.measure: other.as_json() for other in self.others}
        return {
            "name": self.name,
            "controls": self.controls,
            "pairs": pairs,
            "teachers": teachers,
            "missing": self.missing,
            **({"others": others} if others else {}),
        }


def compare(
    name: str,
    trials: Sequence[Trial],
    order: Sequence[tuple[str, str]],
    missing: Sequence[str],
    controls: Mapping[str, str],
    published: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
) -> Comparison:
    """Puts the trials of a matrix together.

    Args:
        name: of the matrix.
        trials: finished runs, each (pair, method, seed) once.
        order: (pair, method) as the matrix has them; trials of other cells are left out.
        missing: names of the runs that are not finished.
        controls: what each method is compared with, in words, by method; a step of the first one that was run costs 1.
        published: figures of other people's, by pair and method, whether the matrix has that method or not.
    """
    pairs = []
    controls = {method: about for method, about in controls.items() if any(trial.method == method for trial in trials)}
    for pair in dict.fromkeys(pair for pair, _ in order):
        methods = [method for p, method in order if p == pair]
        own = [trial for trial in trials if trial.pair == pair and trial.method in methods]
        rows = [_row(method, own, list(controls)) for method in methods if any(t.method == method for t in own)]
        teachers = [t.top1["teacher"] for t in own if "teacher" in t.top1]
        if rows:
            ran = {row.method for row in rows}
            elsewhere = {m: dict(figure) for m, figure in (published or {}).get(pair, {}).items() if m not in ran}
            pairs.append(Pair(pair, fmean(teachers) if teachers else None, rows, own, elsewhere))
    others = []
    for measure in dict.fromkeys(measure for trial in trials for measure in trial.also):
        own = [found for trial in trials if (found := trial.by(measure))]
        others.append(compare(name, own, order, [], controls))
    return Comparison(name, pairs, _teachers(pairs), list(missing), controls, others)


def _row(method: str, trials: Sequence[Trial], controls: Sequence[str]) -> Row:
    own = [trial for trial in trials if trial.method == method]
    ours = {trial.seed: trial.student for trial in own}
    differences = {
        control: paired(ours, {t.seed: t.student for t in trials if t.method == control})
        for control in controls
        if control != method
    }
    top1 = interval([ours[seed] for seed in sorted(ours)])
    assert top1 is not None
    reference = own[0].reference
    mapped = min((trial for trial in own if trial.cka), key=lambda trial: trial.seed, default=None)
    return Row(
        method=method,
        about=own[0].about,
        top1=top1,
        fusion=interval([t.top1["fusion"] for t in own if "fusion" in t.top1]),
        differences=differences,
        published=dict(reference) if reference else None,
        cost=_cost(own, [t for t in trials if t.method in controls[:1]]),
        configs=len({trial.config for trial in own}),
        cka={"seed": mapped.seed, **(mapped.cka or {})} if mapped else None,
        splices=next((dict(trial.splices) for trial in own if trial.splices), None),
    )


def _teachers(pairs: Sequence[Pair]) -> list[Teachers]:
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.name.partition("_")[2], []).append(pair)
    found = [Teachers(name, group, _by_teacher(group)) for name, group in groups.items() if name]
    return [teachers for teachers in found if teachers.differences]


def _by_teacher(pairs: Sequence[Pair]) -> dict[str, dict[str, Interval | None]]:
    found: dict[str, dict[str, Interval | None]] = {}
    for method in dict.fromkeys(row.method for pair in pairs for row in pair.rows):
        own: dict[str, dict[int, float]] = {}
        for trial in (trial for pair in pairs for trial in pair.trials):
            if trial.method == method and "teacher" in trial.top1:
                own.setdefault(trial.pair, {})[trial.seed] = trial.student
        first, *others = own or [""]
        if others:
            found[method] = {first: None, **{name: paired(own[name], own[first]) for name in others}}
    return found


def _cost(own: Sequence[Trial], control: Sequence[Trial]) -> float | None:
    """How much longer a step takes than a control's, where both were run on one kind of hardware."""
    ratios = []
    for hardware in {trial.hardware for trial in own}:
        ours, theirs = ([t.images for t in group if t.hardware == hardware and t.images] for group in (own, control))
        if ours and theirs:
            ratios.append(median(theirs) / median(ours))
    return fmean(ratios) if ratios else None
