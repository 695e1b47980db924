"""Rank correlations against taus worked by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fbt_plugins.report.results import Trial
from fbt_plugins.report.splice_ranking import first_epoch, junction_cka, random_search, rank_correlations, tau

SPLICES = ["S1+T2-4", "S1-2+T3-4", "S1-3+T4", "T1-3+S4"]
SEEDS = {0: [80.0, 81.0, 82.0, 83.0], 1: [80.0, 81.0, 83.0, 82.0], 2: [81.0, 80.0, 82.0, 83.0]}


def trial(splice: str, seed: int, **others: object) -> Trial:
    top1 = {"student": SEEDS[seed][SPLICES.index(splice)]}
    curve = [{"epoch": 1, "student": 10.0, "fusion": 50.0 + seed + SPLICES.index(splice)}]
    return Trial("a_b", splice, seed, "", top1, "test", None, curve, None, "", "", {}, **others)  # type: ignore[arg-type]


TRIALS = [trial(splice, seed) for splice in SPLICES for seed in SEEDS]


def test_tau_is_kendalls() -> None:
    """4 values have 6 pairs; with one swap 5 agree and 1 does not: 4 / 6."""
    assert tau(SEEDS[0], SEEDS[1]) == pytest.approx(4 / 6) and tau(SEEDS[0], SEEDS[0]) == 1
    assert tau(SEEDS[0], SEEDS[0][::-1]) == -1 and tau(SEEDS[0], [5.0] * 4) == 0


def test_predictors_are_held_against_what_seeds_allow() -> None:
    """Seeds 0 and 1, and 0 and 2, differ in one swap each, 1 and 2 in two: (4 + 4 + 2) / 18."""
    good, bad = (dict(zip(SPLICES, values, strict=True)) for values in ([1, 2, 3, 4], [4, 3, 2, 1]))
    ceiling, first, second = rank_correlations(TRIALS, {"good": good, "bad": {**bad, "another": 9.0}}, draws=50)
    assert ceiling.one_seed == pytest.approx(10 / 18) and ceiling.mean is ceiling.best is None
    assert first.one_seed == pytest.approx((1 + 4 / 6 + 4 / 6) / 3) and second.one_seed == -first.one_seed
    assert first.mean == 1.0 and second.mean == -1.0 and first.splices == 4  # means: 80.33, 80.67, 82.33, 82.67
    assert first.best == pytest.approx((83 + 82 + 83) / 3) and second.best == pytest.approx((80 + 80 + 81) / 3)
    (even,) = rank_correlations(TRIALS, {"even": dict.fromkeys(SPLICES, 1.0)}, draws=10)[1:]
    assert even.best == pytest.approx(sum(map(sum, SEEDS.values())) / 12) and even.one_seed == 0
    assert -1 <= first.low <= first.one_seed <= first.high <= 1


def test_splices_that_a_predictor_lacks_are_left_out_for_all() -> None:
    some = {splice: 1.0 * i for i, splice in enumerate(SPLICES[:3])}
    assert {a.splices for a in rank_correlations(TRIALS, {"some": some}, draws=10)} == {3}
    with pytest.raises(ValueError, match="2 splices that all predictors rank, 3 seeds with all 4 splices: 3 and 2 are"):
        rank_correlations(TRIALS, {"two": dict(list(some.items())[:2])})


def test_a_seed_that_lacks_a_splice_does_not_count() -> None:
    good = dict(zip(SPLICES, (1.0, 2.0, 3.0, 4.0), strict=True))
    ceiling, _ = rank_correlations(
        [t for t in TRIALS if (t.method, t.seed) != ("S1-3+T4", 2)], {"good": good}, draws=10
    )
    assert ceiling.one_seed == pytest.approx(4 / 6) and ceiling.splices == 4
    assert list(random_search([t for t in TRIALS if (t.method, t.seed) != ("S1-3+T4", 2)], 1)) == [0, 1]


def test_what_a_random_search_can_expect() -> None:
    """Of 4 splices, 6 draws of 2; validation has them in this order: of 3 draws the first is chosen, of 2, of 1."""
    validation = {"S1+T2-4": 4.0, "S1-2+T3-4": 1.0, "S1-3+T4": 3.0, "T1-3+S4": 2.0}
    runs = [replace(t, curve=[{"epoch": 1, "student": validation[t.method]}]) for t in TRIALS if t.seed == 0]
    assert random_search(runs, 2) == {0: pytest.approx((3 * 80 + 2 * 82 + 1 * 83) / 6)}
    assert random_search(runs, 1) == {0: pytest.approx((80 + 81 + 82 + 83) / 4)} and random_search(runs, 4) == {0: 80}


def test_predictors_that_a_run_leaves_behind() -> None:
    assert first_epoch(TRIALS) == {splice: 51.0 + i for i, splice in enumerate(SPLICES)}
    found = dict(rows=["T1", "T2"], columns=["S1", "S2"], values=[[0.1, 0.2], [0.3, None]])
    made = trial(SPLICES[0], 0, cka=dict(images=8, maps=dict(teacher_student=found)))
    junctions = {"one": [("S1", "T2")], "both": [("T1", "S2"), ("S1", "T1")], "nothing": [("S2", "T2")]}
    assert junction_cka(made, junctions) == {"one": 0.3, "both": pytest.approx(0.15), "nothing": 0.0}
    assert junction_cka(TRIALS[0], junctions) == {}
