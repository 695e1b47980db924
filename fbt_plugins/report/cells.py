"""The cells of the tables and the sentences around them, the same on every page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from .comparison import Comparison, Pair, Row, Teachers
from .intervals import Interval

NONE = "–"
BEFORE = 4
"""Columns of a pair's table before the differences."""


def columns(comparison: Comparison) -> list[str]:
    """Heads of a pair's table."""
    measure = comparison.measure
    return [
        *("method", "what", f"{measure} %", "n"),
        *_to_controls(comparison),
        *(["published, top-1 %"] if _any_published(comparison) else []),
        f"F, {measure}\u00a0%",
        *([f"step time, {next(iter(comparison.controls.values()))}\u00a0=\u00a01"] if _any_cost(comparison) else []),
    ]


def _any_published(comparison: Comparison) -> bool:
    return any(row.published for pair in comparison.pairs for row in pair.rows)


def _any_cost(comparison: Comparison) -> bool:
    return any(row.cost is not None for pair in comparison.pairs for row in pair.rows)


def _to_controls(comparison: Comparison) -> list[str]:
    return [f"difference to {what}, points" for what in comparison.controls.values()]


def mean_sd(value: Interval | None) -> str:
    """ "81.20 ± 0.35", or the mean alone."""
    if value is None:
        return NONE
    return f"{value.mean:.2f}" + (f" ± {value.sd:.2f}" if value.sd is not None else "")


def difference(value: Interval | None) -> str:
    """ "+0.57 [+0.10, +1.04]", or the difference alone."""
    if value is None:
        return NONE
    ends = f" [{value.low:+.2f}, {value.high:+.2f}]" if value.low is not None else ""
    return f"{value.mean:+.2f}{ends}" + (f" (n = {value.n})" if value.n < 2 else "")


def cells(comparison: Comparison, row: Row) -> list[str]:
    """A row's cells, as many as ``columns``."""
    return [
        row.method,
        row.what,
        mean_sd(row.top1),
        str(row.top1.n),
        *(difference(row.differences.get(control)) for control in comparison.controls),
        *([f"{row.published['top1']:.2f}" if row.published else NONE] if _any_published(comparison) else []),
        mean_sd(row.fusion),
        *([f"{row.cost:.2f}" if row.cost is not None else NONE] if _any_cost(comparison) else []),
    ]


def title(pair: Pair) -> str:
    """ "swin-t → resnet18, teacher 89.26 %"."""
    teacher = f", teacher {pair.teacher:.2f} %" if pair.teacher is not None else ""
    return f"{pair.name.replace('_', ' → ', 1)}{teacher}"


def otherwise(comparison: Comparison, pair: Pair) -> str:
    """ "The same runs by linear probe, teacher 89.26 %"."""
    teacher = f", teacher {pair.teacher:.2f} %" if pair.teacher is not None else ""
    return f"The same runs by {comparison.measure}{teacher}"


def elsewhere(pair: Pair) -> str:
    """ "Published, and not run here: pat 81.22 %."; empty where there is no such figure."""
    figures = ", ".join(f"{method} {figure['top1']:.2f} %" for method, figure in pair.elsewhere.items())
    return f"Published, and not run here: {figures}." if figures else ""


DIFFERENCES = "Differences with their 95 % confidence intervals; grey where the interval holds 0, or is not known."


def curves(comparison: Comparison) -> str:
    """What a figure of curves shows."""
    what = _sentence(comparison.measure)
    return f"{what} on validation images by epoch: mean over the seeds, and in a lighter shade all seeds' range."


def _sentence(measure: str) -> str:
    """What a sentence about figures begins with."""
    return "Top-1 accuracy" if measure == "top-1" else measure[:1].upper() + measure[1:]


def similarity(pair: Pair, of: str) -> str:
    """What a figure of CKA maps shows; ``of`` is two of "T", "F" and "S"."""
    seeds, images = ([row.cka[key] for row in pair.rows if row.cka] for key in ("seed", "images"))
    return (
        f"Linear CKA between the stages of {of[0]} (rows) and {of[1]} (columns) on {_either(images)} validation "
        f"images; one run of each method, seed {_either(seeds)}."
    )


def _either(numbers: Iterable[int]) -> str:
    return " or ".join(map(str, sorted(set(numbers))))


def gains(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of mean differences over all pairs."""
    head = ["method", *_to_controls(comparison)]
    rows = []
    for method in comparison.methods:
        found = [comparison.gain(method, control) for control in comparison.controls]
        rows.append([method, *(f"{g[0]:+.2f} ({g[1]} pair{'s' * (g[1] > 1)})" if g else NONE for g in found)])
    return head, rows


def teachers(found: Teachers) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of a student's teachers: top-1 with each, and the difference to the first."""
    own = {pair.name: {row.method: row.top1 for row in pair.rows} for pair in found.pairs}
    head = ["method"]
    for pair in found.pairs:
        head.append(pair.name.partition("_")[0] + (f" ({pair.teacher:.2f} %)" if pair.teacher is not None else ""))
    rows = []
    for method, differences in found.differences.items():
        cells = [method]
        for name, methods in own.items():
            if name not in differences:
                cells.append(NONE)
                continue
            value = differences[name]
            cells.append(mean_sd(methods[method]) + (f"; {difference(value)}" if value is not None else ""))
        rows.append(cells)
    return head, rows


TEACHERS = (
    "Top-1 of the student with each teacher, whose own is in brackets, and the difference to the first of them. What "
    "teachers of unlike strength differ by is not their family alone."
)
_CKA = (
    "CKA maps (in report.html, which the command below writes) say how alike two stages are: 1 where the images lie "
    "alike in both up to rotation and scale, 0 where neither tells of the other. It is linear CKA of whole "
    "activations, of the best epoch's weights, by the unbiased estimator of HSIC averaged over batches (arXiv "
    "1905.00414, 2010.15327), which may fall a little below 0. F's stages are named after their owners; →T4 is the "
    "output of the junction in front of T4 (→T5, where T has four stages: in front of its head). The stages with which "
    "F starts are their owner's own: there, activations are compared with themselves. That a student's stages are more "
    "like the teacher's does not say that it is better."
)


def how_to_read(comparison: Comparison) -> list[str]:
    """What the figures are, one paragraph each."""
    splits = " and ".join(sorted({trial.split for trial in comparison.trials}) or ["final"])
    what = f"{_sentence(comparison.measure)} of the student"
    return [
        f"{what} in percent on the {splits} split, of the epoch that validation chose: mean ± standard deviation over "
        "n seeds. F is the fusion model, T the teacher, S the student.",
        "A difference is taken seed by seed; in brackets is its 95 % confidence interval (paired, Student's t with "
        "n - 1 degrees of freedom). An interval that holds 0 shows no difference. It speaks of seeds, on these test "
        "images, and of one difference alone: of twenty methods that do nothing, one is expected to look as if it did.",
        "Published figures are others' runs with their own code, and not part of any difference.",
        "Time per step is relative to that of the control that has 1, from images per second of runs on the same "
        "hardware, each the median over the run; other work on the machine disturbs it.",
        *([_CKA] if any(trial.cka for trial in comparison.trials) else []),
    ]


def warnings(comparison: Comparison) -> list[str]:
    """What a reader must know before believing the figures."""
    lines = []
    cells = {f"{pair.name}/{row.method}": row for pair in comparison.pairs for row in pair.rows}
    if few := [cell for cell, row in cells.items() if row.top1.n < 5]:
        lines.append(f"Fewer than 5 seeds: {_named(few, 'methods')}.")
    if mixed := [cell for cell, row in cells.items() if row.configs > 1]:
        lines.append(f"Seeds of different configs are mixed: {', '.join(mixed)}.")
    if len({trial.measure for trial in comparison.trials}) > 1:
        lines.append(f"Runs measured different things, {comparison.measure}: their figures cannot be compared.")
    if comparison.missing:
        lines.append(f"Not finished ({len(comparison.missing)}): {_named(comparison.missing, 'runs')}.")
    return lines


def _named(names: Sequence[str], what: str, most: int = 8) -> str:
    """Names such as "pair/method", or where there are many, how many of each pair."""
    if len(names) <= most:
        return ", ".join(names)
    return ", ".join(f"{pair} ({n} {what})" for pair, n in Counter(name.partition("/")[0] for name in names).items())


def sources(comparison: Comparison) -> list[str]:
    """Where the published figures are from."""
    found: dict[str, list[str]] = {}
    for pair in comparison.pairs:
        for row in pair.rows:
            if row.published:
                found.setdefault(row.published["source"], []).append(f"{pair.name}/{row.method}")
        for method, figure in pair.elsewhere.items():
            found.setdefault(figure["source"], []).append(f"{pair.name}/{method}")
    return [f"{source}: {', '.join(cells)}" for source, cells in found.items()]


def provenance(comparison: Comparison) -> list[tuple[str, str]]:
    """Runs, hours, hardware and versions behind the figures."""
    trials = comparison.trials
    hours = sum(trial.about_run.get("seconds") or 0 for trial in trials) / 3600
    return [
        ("runs", f"{len(trials)} finished, {hours:.1f} hours of training"),
        ("hardware", "; ".join(sorted({trial.hardware for trial in trials}))),
        ("versions", "; ".join(sorted({_versions(trial.about_run.get("versions") or {}) for trial in trials}))),
        ("code", ", ".join(sorted({_commit(trial.about_run.get("git")) for trial in trials}))),
    ]


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _commit(git: Mapping[str, object] | None) -> str:
    return f"{str(git['commit'])[:12]}{' with changes' if git.get('changed') else ''}" if git else "no checkout"
