"""When an edge's losses are on, and with which weight."""

from __future__ import annotations

from typing import Any

import pytest

from fbt_plugins.distill.edge_schedule import Schedule, checked_weight, gap
from fbt_plugins.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({}, {0.0: 1, 0.5: 1, 0.999: 1}),
        (dict(begin=0.13), {0.0: 0, 12 / 100: 0, 13 / 100: 1, 0.99: 1}),
        (dict(begin=0.2, ramp=0.4), {0.1: 0, 0.2: 0, 0.3: 0.25, 0.4: 0.5, 0.6: 1, 0.9: 1}),
        (dict(ramp=1.0), {0.0: 0, 0.25: 0.25, 0.75: 0.75}),
        (dict(end=0.5), {0.0: 1, 0.49: 1, 0.5: 0, 0.9: 0}),
        (dict(begin=0.1, ramp=0.2, end=0.3), {0.05: 0, 0.2: 0.5, 0.3: 0}),
    ],
)
def test_the_weight_is_a_line_between_two_fractions(options: dict[str, Any], weights: dict[float, float]) -> None:
    schedule = Schedule(**options)
    for progress, weight in weights.items():
        assert schedule.weight(progress) == pytest.approx(weight)
        assert schedule.covers(progress) or weight == 0
    assert schedule.always_on == (not {"begin", "end"} & options.keys())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (dict(begin=-0.1), "begin is a fraction of training, from 0 to 1, not -0.1"),
        (dict(ramp=13), "ramp is a fraction of training, from 0 to 1, not 13"),
        (dict(end="half"), "end is a fraction of training, from 0 to 1, not 'half'"),
        (dict(begin=True), "begin is a fraction"),
        (dict(begin=float("nan")), "begin is a fraction"),
        (dict(begin=1.0), r"begin=1.0 must be less than end=1.0"),
        (dict(begin=0.5, end=0.2), r"begin=0.5 must be less than end=0.2"),
        (dict(begin=0.9, ramp=0.2), r"begin=0.9 and ramp=0.2 go beyond end=1.0"),
    ],
)
def test_what_is_no_fraction_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Schedule(**options)


def test_a_time_without_any_loss_is_found() -> None:
    def found(*spans: tuple[float, float]) -> tuple[float, float] | None:
        return gap([Schedule(begin=begin, end=end) for begin, end in spans])

    assert found((0, 1), (0.2, 0.3)) is None and found((0.5, 1), (0, 0.5)) is None
    assert found((0.13, 1)) == (0, 0.13)
    assert found((0, 0.4), (0.1, 0.2), (0.6, 1)) == (0.4, 0.6)
    assert found((0, 0.4), (0, 0.7)) == (0.7, 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "2", None, True])
def test_a_weight_is_a_finite_number(value: Any) -> None:
    assert checked_weight(2, "model.task_loss") == 2.0
    with pytest.raises(ConfigError, match=f"model.task_loss: weight must be a finite number, not {value!r}"):
        checked_weight(value, "model.task_loss")
