import pytest

from fbt_plugins.distill.splice import Junction, Piece, Splice, enumerate_splices, parse_all
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
