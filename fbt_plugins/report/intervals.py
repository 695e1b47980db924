"""Means, spreads, and what a difference between two methods may be, from a handful of seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from statistics import fmean, stdev

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with its spread.

    Attributes:
        mean: of the values.
        sd: their standard deviation (n - 1 in the denominator); None for one value.
        n: how many.
        low, high: ends of the 95 % confidence interval of the mean by Student's t; None for one value.
    """

    mean: float
    sd: float | None
    n: int
    low: float | None = None
    high: float | None = None

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def interval(values: Sequence[float]) -> Interval | None:
    """The mean of some values and its 95 % confidence interval, ``mean ± t(0.975, n - 1) sd / sqrt(n)``.

    With so few values the interval is Student's: for 3 values it is twice as wide as a normal one.
    """
    found = spread(values)
    if found is None or found.sd is None:
        return found
    from scipy.stats import t

    half = float(t.ppf((1 + LEVEL) / 2, found.n - 1)) * found.sd / sqrt(found.n)
    return replace(found, low=found.mean - half, high=found.mean + half)


def spread(values: Sequence[float]) -> Interval | None:
    """The mean of some values and their standard deviation, without an interval."""
    if not values:
        return None
    return Interval(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Interval | None:
    """The difference ours - theirs over the seeds that both have, pair by pair.

    Args:
        ours, theirs: values by seed.

    Returns:
        None where no seed is in both.
    """
    return interval([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])
