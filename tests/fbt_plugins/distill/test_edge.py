"""Edges: their schedules, their gates, and the grammar of splices."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fbt_plugins import Knowledge
from fbt_plugins.distill.edge_gates import agreement
from fbt_plugins.distill.edge_schedule import Schedule, checked_weight, gap
from fbt_plugins.distill.splice import Junction, Piece, Splice, enumerate_splices, parse_all
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


# ---- edge gates -----------------------------------------------------------------------------------------------------


def test_agreement_is_the_part_of_images_with_the_same_class() -> None:
    giver = torch.tensor([[2.0, 1, 0], [0, 5, 1], [1, 0, 3], [9, 0, 0]], requires_grad=True)
    teacher = torch.tensor([[7.0, 1, 0], [0, 1, 5], [0, 0, 1], [1, 0, 0]])  # another class in the second row
    value = agreement(Knowledge(giver, giver), Knowledge(teacher, teacher))
    assert value.item() == 0.75 and not value.requires_grad


# ---- splice ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["S1-3+T4", "T1-3+S4", "S1-2+T3-4", "S1+T2+S3-4", "S1-4+Thead", "S1-3+Thead", "T1-4+Shead"]
)
def test_prints_what_it_parsed(text: str) -> None:
    assert str(Splice.parse(text)) == text


def test_auto_is_the_papers_three_plus_one() -> None:
    assert str(Splice.parse("auto")) == "S1-3+T4"
    assert str(Splice.parse("auto", student_stages=8, teacher_stages=6)) == "S1-7+T6"
    assert str(Splice.parse("auto", student_stages=1, teacher_stages=2)) == "S1+T2"
    assert str(Splice.parse("auto", student_stages=4, teacher_stages=1)) == "S1-3+Thead"


def test_junctions_name_who_gives_and_who_takes() -> None:
    splice = Splice.parse("S1+T2+S3-4")
    assert splice.start == Piece("S", 1, 1)
    assert splice.junctions == [Junction("S", 1, "T", 2), Junction("T", 2, "S", 3)]
    assert Splice.parse("S1-3+Thead").junctions == [Junction("S", 3, "T", 5)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("S1-4", "never switches"),
        ("S1-3", "never switches"),
        ("S1-3+T5", "out of range"),
        ("S1-3+T0", "out of range"),
        ("S3-1+T4", "out of range"),
        ("S2-3+T4", "begin with stage 1"),
        ("S1-2+T3", "end with the teacher's last stage"),
        ("Thead+S1-4", "only be the last piece"),
        ("S1+S2+T3-4", "side by side"),
        ("S1-2+T3+S2-4", "go back"),
        ("S1+T1-4", "go back"),
        ("S1-3+X4", "not a piece"),
        ("s1-3+t4", "not a piece"),
        ("", "not a piece"),
    ],
)
def test_says_what_is_wrong_with_a_splice(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as error:
        Splice.parse(text)
    assert "\n" not in str(error.value)


def test_enumerates_every_cut_once_and_all_can_be_parsed() -> None:
    found = [str(s) for s in enumerate_splices(4, 4)]
    assert sorted(found) == sorted(
        ["S1+T2-4", "S1-2+T3-4", "S1-3+T4", "S1-4+Thead", "T1+S2-4", "T1-2+S3-4", "T1-3+S4", "T1-4+Shead"]
    )
    twice = [str(s) for s in enumerate_splices(4, 4, switches=2)]
    assert len(twice) == len(set(twice)) == 12
    assert all(str(Splice.parse(text)) == text for text in found + twice)


def test_a_list_of_splices_is_read_whole_or_refused_line_by_line() -> None:
    assert parse_all("auto") == [Splice.parse("S1-3+T4")]
    assert list(map(str, parse_all(["S1+T2-4", "auto"]))) == ["S1+T2-4", "S1-3+T4"]
    with pytest.raises(ConfigError) as refused:
        parse_all(["S1-3+T5", "S1-3+T4", "S1-4", "auto"])
    lines = refused.value.problems
    assert len(lines) == 3 and "'T5' is out of range" in lines[0] and "'S1-4': it never switches" in lines[1]
    assert lines[2] == "splice 'auto' is there twice"
    for nothing in ([], 4, [["S1-3+T4"]]):
        with pytest.raises(ConfigError):
            parse_all(nothing)  # type: ignore[arg-type]
