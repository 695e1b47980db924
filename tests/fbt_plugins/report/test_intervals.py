"""Means and their intervals, against numbers worked by hand."""

from __future__ import annotations

import pytest

from fbt_plugins.report import interval, paired


def test_an_interval_worked_by_hand() -> None:
    """1, 2, 3: mean 2, sd 1; t(0.975, 2) = 4.30265, so 4.30265 / sqrt(3) = 2.48414 on either side."""
    found = interval([1.0, 2.0, 3.0])
    assert found is not None and (found.mean, found.sd, found.n) == (2.0, 1.0, 3)
    assert found.low == pytest.approx(2 - 2.484138, abs=1e-5) and found.high == pytest.approx(2 + 2.484138, abs=1e-5)
    assert not found.is_clear


@pytest.mark.parametrize(
    ("values", "quantile"),  # t(0.975, n - 1) of a printed table
    [
        ([0, 2], 12.706),
        ([0, 1, 2, 3], 3.182),
        ([0, 1, 2, 3, 4], 2.776),
        (list(range(10)), 2.262),
        (list(range(31)), 2.042),
    ],
)
def test_the_quantile_is_students(values: list[float], quantile: float) -> None:
    found = interval(values)
    assert found is not None and found.high is not None and found.sd is not None
    assert (found.high - found.mean) / (found.sd / len(values) ** 0.5) == pytest.approx(quantile, abs=6e-4)


def test_the_readmes_five_seeds() -> None:
    """+0.35, +0.50, +1.25, +0.15, +0.55: mean 0.56, sd 0.4158, t 2.7764, so 0.5163 on either side."""
    found = interval([0.35, 0.50, 1.25, 0.15, 0.55])
    assert found is not None and found.mean == pytest.approx(0.56) and found.sd == pytest.approx(0.41593, abs=1e-4)
    assert found.low == pytest.approx(0.0436, abs=2e-4) and found.is_clear


def test_one_value_has_no_interval_and_none_has_nothing() -> None:
    found = interval([3.0])
    assert found is not None and found.n == 1 and found.sd is found.low is found.high is None and not found.is_clear
    assert interval([]) is None


def test_differences_are_of_the_seeds_that_both_have() -> None:
    found = paired({0: 83.0, 1: 83.5, 7: 99.0}, {0: 82.0, 1: 83.0, 2: 81.5})
    assert found is not None and found.n == 2 and found.mean == pytest.approx(0.75)
    assert paired({0: 1.0}, {1: 1.0}) is None
