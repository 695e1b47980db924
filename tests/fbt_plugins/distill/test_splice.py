"""Splices: read, printed, enumerated, and what is wrong with one."""

from __future__ import annotations

import itertools

import pytest

from fbt_plugins.distill.splice import Junction, Piece, Splice, enumerate_splices, in_words, more_local, parse_all
from fbt_plugins.errors import ConfigError


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
    assert str(Splice.parse("auto", first="T")) == "T1-3+S4"  # the CNN teaches
    assert str(Splice.parse("auto", student_stages=8, teacher_stages=6, first="T")) == "T1-5+S8"
    assert str(Splice.parse("auto", student_stages=1, teacher_stages=4, first="T")) == "T1-3+Shead"


FAMILIES = ("cnn", "hybrid", "attention", "mlp")


def test_the_more_local_model_is_first_and_of_equals_the_student() -> None:
    teacher_first = {("hybrid", "cnn"), *((s, t) for s in ("attention", "mlp") for t in ("cnn", "hybrid"))}
    for student, teacher in itertools.product(FAMILIES, repeat=2):
        assert more_local(student, teacher) == ("T" if (student, teacher) in teacher_first else "S")


@pytest.mark.parametrize(
    ("text", "student_first", "teacher_first"),
    [
        ("C1-3+M4", "S1-3+T4", "T1-3+S4"),
        ("M1-3+C4", "T1-3+S4", "S1-3+T4"),
        ("C1-3+Mhead", "S1-3+Thead", "T1-3+Shead"),
        ("C1+M2+C3-4", "S1+T2+S3-4", "T1+S2+T3-4"),
        ("S1-3+T4", "S1-3+T4", "S1-3+T4"),
    ],
)
def test_roles_are_read_as_owners(text: str, student_first: str, teacher_first: str) -> None:
    for first, owners in (("S", student_first), ("T", teacher_first)):
        splice = Splice.parse(text, first=first)
        assert (str(splice), splice.written) == (owners, text) and splice == Splice.parse(owners)


UNDECIDED = "; neither is more local than the other, so the student is first (a model's family=... says otherwise)"
HYBRID = (
    "; a hybrid counts as less local than a CNN and more than attention or an MLP (a model's family=... says otherwise)"
)


@pytest.mark.parametrize(
    ("texts", "families", "words"),
    [
        ("auto", "mlp cnn", "auto is T1-3+S4: the teacher (cnn) gives the first stages, the student (mlp) the rest"),
        (
            "C1-3+Mhead",
            "mlp cnn",
            "C1-3+Mhead is T1-3+Shead: the teacher (cnn) gives the stages, the student (mlp) the head",
        ),
        ("S1-3+T4", "mlp cnn", "S1-3+T4: the student (mlp) gives the first stages, the teacher (cnn) the rest"),
        ("C1+M2+C3-4", "cnn mlp", "C1+M2+C3-4 is S1+T2+S3-4; C is the student (cnn), M the teacher (mlp)"),
        ("S1+T2+S3-4", "cnn mlp", "S1+T2+S3-4"),
        (
            ["auto", "S1-3+T4"],
            "mlp cnn",
            "one per step: auto is T1-3+S4, S1-3+T4; C is the teacher (cnn), M the student (mlp)",
        ),
        (
            "auto",
            "mlp attention",
            "auto is S1-3+T4: the student (mlp) gives the first stages, the teacher (attention) the rest" + UNDECIDED,
        ),
        (
            "auto",
            "hybrid cnn",
            "auto is T1-3+S4: the teacher (cnn) gives the first stages, the student (hybrid) the rest" + HYBRID,
        ),
    ],
)
def test_a_splice_in_words(texts: str | list[str], families: str, words: str) -> None:
    both = dict(zip(("student", "teacher"), families.split(), strict=True))
    assert in_words(parse_all(texts, first=more_local(**both)), both) == words


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
        ("S1-3+X4", "'X4' is not a piece: there is no model 'X'; S is the student, T the teacher, C the more local"),
        ("s1-3+t4", "'s1-3' is not a piece; did you mean 'S1-3\\+T4'"),
        ("C1-3 + mHead", "'C1-3 ' is not a piece; did you mean 'C1-3\\+Mhead'"),
        ("atuo", "'atuo' is not a piece; did you mean 'auto'"),
        ("C1-3+T4", "not both in one; C is the student here: write 'S1-3\\+T4'"),
        ("C1-3+M5", "'M5' is out of range: the teacher has stages 1 to 4"),
        ("C2-3+M4", "begin with stage 1, which takes images, not with C2-3"),
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
    assert lines[2] == "splice 'auto' is there twice: 'S1-3+T4' is the same with these models"
    with pytest.raises(ConfigError, match=r"'T1-3\+S4' is there twice: 'auto' is the same with these models"):
        parse_all(["auto", "T1-3+S4"], first="T")
    assert len(parse_all(["auto", "S1-3+T4"], first="T")) == 2
    for nothing in ([], 4, [["S1-3+T4"]]):
        with pytest.raises(ConfigError):
            parse_all(nothing)  # type: ignore[arg-type]
