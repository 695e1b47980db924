"""How well cheap predictors rank splices: against trainings of each splice by itself, and against what seeds allow."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from math import comb
from statistics import fmean
from typing import Any

from .results import Trial

LEVEL = 0.95


@dataclass(frozen=True)
class RankCorrelation:
    """Kendall's tau-b between a predictor's ranking of some splices and that of their trainings.

    Attributes:
        predictor: in words.
        splices: how many were ranked.
        one_seed: against the students of one seed, the mean over seeds; for the ceiling, of one seed against another.
        low, high: its 95 % interval, by a bootstrap over splices.
        mean: against the students' mean over seeds; None for the ceiling, which is part of that mean.
        best: test top-1 that the predictor's first splice has in the trainings, the mean over seeds and over equals.
    """

    predictor: str
    splices: int
    one_seed: float
    low: float
    high: float
    mean: float | None
    best: float | None


def rank_correlations(
    trials: Sequence[Trial], predictors: Mapping[str, Mapping[str, float]], draws: int = 2000
) -> list[RankCorrelation]:
    """Rank correlations: of the seeds with each other, the ceiling, and of each predictor with them.

    Splices that a predictor lacks are left out for all of them, so that all rank the same ones.

    Args:
        trials: of one pair, each method a splice. Seeds that lack a splice that others have do not count.
        predictors: by name, a value for each splice; higher is better.
        draws: of the bootstrap.

    Raises:
        ValueError: with fewer than 3 splices in common, or fewer than 2 seeds.
    """
    by_seed = {seed: {trial.method: trial.student for trial in found} for seed, found in _whole_seeds(trials).items()}
    trained = dict.fromkeys(trial.method for trial in trials)
    splices = [splice for splice in trained if all(splice in table for table in predictors.values())]
    if len(splices) < 3 or len(by_seed) < 2:
        raise ValueError(
            f"{len(splices)} splices that all predictors rank, {len(by_seed)} seeds with all {len(trained)} splices: "
            "3 and 2 are the least"
        )
    seeds = [[table[splice] for splice in splices] for table in by_seed.values()]
    mean = [fmean(column) for column in zip(*seeds, strict=True)]
    pairs = [(a, b) for i, a in enumerate(seeds) for b in seeds[:i]]

    def ceiling(chosen: Sequence[int]) -> float:
        return fmean(tau(_at(a, chosen), _at(b, chosen)) for a, b in pairs)

    everything = range(len(splices))
    found = [
        RankCorrelation(
            "another seed", len(splices), ceiling(everything), *_bootstrap(ceiling, splices, draws), None, None
        )
    ]
    for name, table in predictors.items():
        values = [table[splice] for splice in splices]

        def against_seeds(chosen: Sequence[int], values: Sequence[float] = values) -> float:
            return fmean(tau(_at(values, chosen), _at(seed, chosen)) for seed in seeds)

        interval = _bootstrap(against_seeds, splices, draws)
        best = fmean(mean[i] for i in everything if values[i] == max(values))
        found.append(RankCorrelation(name, len(splices), against_seeds(everything), *interval, tau(values, mean), best))
    return found


def tau(a: Sequence[float], b: Sequence[float]) -> float:
    """Kendall's tau-b, 0 where one of the two is the same everywhere."""
    from scipy.stats import kendalltau

    value = float(kendalltau(a, b).statistic)
    return value if value == value else 0.0


def _at(values: Sequence[float], chosen: Sequence[int]) -> list[float]:
    return [values[i] for i in chosen]


def _bootstrap(statistic: Callable[[Sequence[int]], float], splices: Sequence[str], draws: int) -> tuple[float, float]:
    """The middle 95 % of a statistic over splices drawn with replacement; the same draws for all predictors."""
    generator = random.Random(0)
    count = len(splices)
    values = sorted(statistic(generator.choices(range(count), k=count)) for _ in range(draws))
    tail = (1 - LEVEL) / 2
    return values[round(tail * (draws - 1))], values[round((1 - tail) * (draws - 1))]


def random_search(trials: Sequence[Trial], size: int) -> dict[int, float]:
    """Test top-1 that a random search can expect: some splices are drawn and trained, validation chooses among them.

    The mean over all draws without replacement, from trainings of every splice.

    Args:
        trials: of one pair, each method a splice. Seeds that lack a splice that others have do not count.
        size: trainings of one search.

    Returns:
        By seed.
    """
    expected = {}
    for seed, found in _whole_seeds([trial for trial in trials if trial.validated is not None]).items():
        if len(found) < size:
            continue
        order = sorted(found, key=lambda trial: -(trial.validated or 0.0))
        # The one at a place is chosen where the others of the draw lie behind it.
        chosen = [comb(len(order) - 1 - place, size - 1) for place in range(len(order))]
        expected[seed] = sum(w * t.student for w, t in zip(chosen, order, strict=True)) / comb(len(order), size)
    return expected


def _whole_seeds(trials: Sequence[Trial]) -> dict[int, list[Trial]]:
    """By seed, of those that have every method that any seed has."""
    by_seed: dict[int, list[Trial]] = {}
    for trial in trials:
        by_seed.setdefault(trial.seed, []).append(trial)
    methods = {trial.method for trial in trials}
    return {seed: found for seed, found in by_seed.items() if len(found) == len(methods)}


def first_epoch(trials: Sequence[Trial]) -> dict[str, float]:
    """Top-1 of each splice's own fusion model at its first validation, the mean over the seeds that all have."""
    values: dict[str, list[float]] = {}
    for trial in chain.from_iterable(_whole_seeds(trials).values()):
        if trial.curve and "fusion" in trial.curve[0]:
            values.setdefault(trial.method, []).append(trial.curve[0]["fusion"])
    return {splice: fmean(v) for splice, v in values.items()}


def junction_cka(trial: Trial, splices: Mapping[str, Sequence[tuple[str, str]]]) -> dict[str, float]:
    """CKA between what arrives at a splice's junctions and what its next stages are used to, the mean over junctions.

    Args:
        trial: a run without a fusion model whose map of teacher and student counts.
        splices: of each the stages to compare at its junctions, ("S3", "T3").
    """
    found = ((trial.cka or {}).get("maps") or {}).get("teacher_student")
    if not found:
        return {}
    values = dict(zip(found["rows"], found["values"], strict=True))

    def cka(a: str, b: str) -> float:
        teacher, student = (a, b) if a.startswith("T") else (b, a)
        return float(values[teacher][found["columns"].index(student)] or 0.0)

    return {splice: fmean(cka(*stages) for stages in junctions) for splice, junctions in splices.items()}


def as_json(found: Sequence[RankCorrelation]) -> list[dict[str, Any]]:
    """For a file."""
    return [asdict(one) for one in found]
