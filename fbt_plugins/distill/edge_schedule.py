"""Schedules: when in training a loss is on, and how its weight rises."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..errors import ConfigError, as_number, is_number

TIMES = ("begin", "ramp", "end")


class Schedule:
    """A weight that is a function of the part of training that is done, and of nothing else: there is no state to save.

    It is 0 before ``begin`` and from ``end`` on, where nothing need be computed at all; between them it rises from 0 to
    1 during ``ramp``, in a line, and stays there. All three are fractions of training.

    Args:
        begin: fraction of training from which on it is on.
        ramp: fraction of training during which the weight rises; 0 begins with the whole weight.
        end: fraction of training from which on it is off again; 1 is never.

    Raises:
        ConfigError: if they are no such fractions.
    """

    def __init__(self, begin: float = 0.0, ramp: float = 0.0, end: float = 1.0) -> None:
        values = {"begin": begin, "ramp": ramp, "end": end}
        for name, value in values.items():
            if not is_number(value) or not 0 <= value <= 1:
                raise ConfigError(f"{name} is a fraction of training, from 0 to 1, not {value!r}")
        if begin >= end:
            raise ConfigError(f"begin={begin} must be less than end={end}")
        if begin + ramp > end + 1e-9:  # 0.1 + 0.2 is more than 0.3
            raise ConfigError(f"begin={begin} and ramp={ramp} go beyond end={end}: the weight would never be whole")
        self.begin, self.ramp, self.end = float(begin), float(ramp), float(end)

    @property
    def always_on(self) -> bool:
        """Whether it is on in all of training."""
        return self.begin == 0 and self.end == 1

    def weight(self, progress: float) -> float:
        """The weight, from 0 to 1, where this fraction of training is done."""
        if not self.covers(progress):
            return 0.0
        return min((progress - self.begin) / self.ramp, 1.0) if self.ramp else 1.0

    def covers(self, progress: float) -> bool:
        """Whether it is on where this fraction of training is done."""
        return self.begin <= progress and (progress < self.end or self.end == 1)


def checked_weight(value: Any, place: str) -> float:
    """The weight of a loss or an edge.

    Args:
        value: what a config says.
        place: where it says so.

    Raises:
        ConfigError: if it is no finite number.
    """
    if not is_number(value):
        raise ConfigError(f"{place}: weight must be a finite number, not {as_number(value)}")
    return float(value)


def gap(schedules: Iterable[Schedule]) -> tuple[float, float] | None:
    """The first part of training, as two fractions, in which no schedule is on; None if there is none."""
    reached = 0.0
    for schedule in sorted(schedules, key=lambda one: one.begin):
        if schedule.begin > reached:
            return reached, schedule.begin
        reached = max(reached, schedule.end)
    return (reached, 1.0) if reached < 1 else None
