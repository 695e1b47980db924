"""Finished runs as lines of a file; intervals, and rankings of splices, against numbers worked by hand."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from fbt_plugins.errors import FBTError
from fbt_plugins.files import append_line
from fbt_plugins.report import Trial, interval, paired, read_trials, trial_of_run, trials_file
from fbt_plugins.report.splice_ranking import first_epoch, junction_cka, random_search, rank_correlations, tau

ROOT = Path(__file__).parents[3]
_MAP = dict(models=["teacher", "student"], rows=["T1"], columns=["S1", "S2"], values=[[0.11, None]])
CKA = dict(images=512, maps=dict(teacher_student=_MAP))


def trial(method: str, seed: int, **changes: object) -> Trial:
    top1 = {"student": 80.0 + seed, "teacher": 90.0}
    values = dict(pair="a_b", about="", top1=top1, split="test", images=None, curve=[{"epoch": 1, **top1}])
    values |= dict(reference=None, config="c0ffee", hardware="a CPU", about_run=dict(seconds=60.0))
    return Trial(method=method, seed=seed, **(values | changes))


TRIALS = [trial(method, seed) for method in ("fbt", "kd", "t_s") for seed in range(3)]
"""In the order in which they are read."""


def written(path: Path, trials: Sequence[Trial]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(made.line() + "\n" for made in trials))
    return path


def read(path: Path) -> tuple[list[Trial], list[str]]:
    """The trials of a file, and what was told."""
    told: list[str] = []
    return read_trials(path, told.append), told


def test_trials_come_back_as_they_were_whatever_the_order_of_lines(tmp_path: Path) -> None:
    odd = trial("kd", 0, pair="a_ß", about="two\nlines\u2028and \x85", cka=CKA)
    assert read(written(tmp_path / "one.jsonl", [odd, *TRIALS])) == ([*TRIALS, odd], [])
    assert read(written(tmp_path / "two.jsonl", [*reversed(TRIALS), odd])) == ([*TRIALS, odd], [])
    again = [made.line() for made in read(tmp_path / "one.jsonl")[0]]
    assert again == [made.line() for made in [*TRIALS, odd]]  # and the same bytes, order of keys included
    spliced = trial("fbt", 5, splices={"fusion": ["T1-3+S4"]})
    assert read(written(tmp_path / "spliced.jsonl", [spliced])) == ([spliced], [])
    assert "splices" not in TRIALS[0].line() and Trial.from_line(TRIALS[0].line()).splices is None  # a run of before
    with pytest.raises(TypeError, match="splices: expected lists of splices by fusion model"):
        Trial.from_line(spliced.line().replace('["T1-3+S4"]', '"T1-3+S4"'))
    several = trial("fbt", 6, measure="knn", also={"probe": {"student": 1.5}})
    assert read(written(tmp_path / "several.jsonl", [several])) == ([several], [])
    assert '"also"' not in TRIALS[0].line() and several.by("top1") is None
    with pytest.raises(TypeError, match="also: expected numbers by model, the student's among them, by measure"):
        Trial.from_line(several.line().replace('{"student":1.5}', "{}"))
    assert read(tmp_path / "nowhere.jsonl") == ([], [])


def test_a_mark_of_the_encoding_at_the_start_loses_no_run(tmp_path: Path) -> None:
    """Some editors put one there."""
    whole, marked = tmp_path / "whole.jsonl", tmp_path / "marked.jsonl"
    whole.write_bytes("".join(f"{trial.line()}\n" for trial in TRIALS).encode())
    marked.write_bytes(b"\xef\xbb\xbf" + whole.read_bytes())
    assert read_trials(marked, pytest.fail) == read_trials(whole, pytest.fail)


def test_a_run_counts_once_and_its_first_line_stands(tmp_path: Path) -> None:
    first, again, other = trial("kd", 0), trial("kd", 0, top1={"student": 1.0}), trial("kd", 0, config="another")
    path = written(tmp_path / "trials.jsonl", [first, first, again, other, again, first])
    what = (
        "lines left out because they differ from an earlier one of the same run: 2 (the first is a_b/kd/seed 0, line 3)"
    )
    assert read(path) == ([other, first], [f"{path}: {what}"])


def test_lines_that_are_not_whole_are_told_and_the_rest_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "trials.jsonl", TRIALS[:2])
    whole = path.read_bytes()
    path.write_bytes(whole + TRIALS[2].line().encode()[:-5])
    what = "lines left out because they are not whole"
    assert read(path) == (TRIALS[:2], [f"{path}: {what}: 1 (the first is line 3)"])
    letter = trial("kd", 0, about="é").line().encode()
    letter = letter[: letter.index("é".encode()) + 1]  # cut in the middle of a letter
    path.write_bytes(b"<<<<<<< HEAD\n\n" + letter + b"\n\0\0\n" + whole.rstrip(b"\n"))  # the last one is whole
    assert read(path) == (TRIALS[:2], [f"{path}: {what}: 3 (the first is line 1)"])


@pytest.mark.parametrize("line", ['{"pair": "a"}', "[]", "3"])
def test_a_file_of_something_else_is_one_line(tmp_path: Path, line: str) -> None:
    path = written(tmp_path / "trials.jsonl", TRIALS[:1])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(FBTError, match=r"trials\.jsonl, line 2: not a trial"):
        read(path)


WRONG: dict[str, list[object]] = {
    "pair": ["../../x", "a/b", "..", "", "a\\b", "a\nb", 3, None],
    "method": ["/etc", ["kd"]],
    "seed": ["0", 1.5, True, None],
    "about": [None],
    "top1": [{}, {"teacher": 1.0}, {"student": "80"}, {"student": float("nan")}, [80.0], 80.0],
    "split": [1],
    "images": ["9", 0.0, float("inf")],
    "curve": [None, [1], [{"epoch": 1}], [{"epoch": "1", "student": 2.0}]],
    "reference": [3, {"top1": 81.0}, {"top1": "81", "source": ""}],
    "config": [None, 3],
    "hardware": [{}],
    "about_run": [None, {"seconds": "60"}, {"versions": "torch"}, {"git": {"branch": "x"}}],
    "cka": [3, {"images": 1}, {"images": 1, "maps": {"a": {**_MAP, "values": [[1.0]]}}}],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_a_field_that_is_not_what_it_should_be_is_one_line(key: str, value: object, tmp_path: Path) -> None:
    path = written(tmp_path / "trials.jsonl", TRIALS[:1])
    path.write_text(path.read_text() + json.dumps(json.loads(TRIALS[1].line()) | {key: value}) + "\n")
    with pytest.raises(FBTError, match=rf"trials\.jsonl, line 2: not a trial \({key}: expected ") as caught:
        read(path)
    assert len(caught.value.lines()) == 1


def test_lines_that_no_file_could_hold_again_are_left_out(tmp_path: Path) -> None:
    path = written(tmp_path / "trials.jsonl", TRIALS[:1])
    half_a_letter = TRIALS[1].line().replace('"about":""', '"about":"\\ud800"')
    path.write_text(path.read_text() + half_a_letter + "\n" + '{"seed": ' + "9" * 5000 + "}\n")
    assert read(path)[0] == TRIALS[:1]
    path.write_text(path.read_text() + "[" * 100_000 + "\n")
    with pytest.raises(FBTError, match="line 4: not a trial"):
        read(path)


def test_lines_of_before_there_were_maps_and_of_later_versions_are_read(tmp_path: Path) -> None:
    values = json.loads(TRIALS[0].line())
    del values["cka"]
    (tmp_path / "trials.jsonl").write_text(json.dumps(values | {"later": 1}))
    assert read(tmp_path / "trials.jsonl") == (TRIALS[:1], [])


def test_a_file_or_the_folder_that_has_it(tmp_path: Path) -> None:
    path = written(tmp_path / "grid" / "trials.jsonl", TRIALS)
    assert trials_file(path) == trials_file(path.parent) == path
    (tmp_path / "report.json").write_text("{}")
    for wrong in ("", "nowhere", "report.json"):
        with pytest.raises(FBTError, match=r"no finished runs; expected is a trials\.jsonl, or a folder that has one"):
            trials_file(tmp_path / wrong)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_git_merges_what_two_machines_have_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")

    def git(*args: str) -> None:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *args]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def finish(*trials: Trial) -> None:
        for made in trials:
            append_line(path, made.line())
        git("add", "-A")
        git("commit", "-m", "runs")

    git("init", "-b", "one")
    shutil.copy(ROOT / ".gitattributes", tmp_path)
    path = tmp_path / "docs" / "results" / "grid" / "trials.jsonl"
    finish(*TRIALS[:3])
    git("checkout", "-b", "two")
    finish(*TRIALS[3:6], trial("new", 0, hardware="another CPU"), TRIALS[8])
    git("checkout", "one")
    finish(*TRIALS[6:], trial("new", 0))
    git("merge", "two", "-m", "both")
    found, (told,) = read(path)
    assert found == [*TRIALS[:6], trial("new", 0), *TRIALS[6:]]
    assert "differ from an earlier one of the same run: 1 (the first is a_b/new/seed 0, line " in told


def test_a_runs_folder_becomes_a_trial(tmp_path: Path) -> None:
    with pytest.raises(FBTError, match="not the folder of a finished run"):
        trial_of_run(tmp_path, "c0ffee", "a CPU")
    summary = dict(
        cell=dict(pair="a_b", method="kd", about="KD"),
        seed=3,
        split="test",
        student_top1=81.0,
        student_top5=99.0,
        teacher_top1=90.0,
        best_validation_student_top1=82.0,
        seconds=9.0,
        cka=CKA,
    )
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    records = [{"train/images_per_second": rate} for rate in (100.0, 300.0, 310.0)]
    records += [{"epoch": 1, "val/student_top1": 70.0, "val/teacher_top1": 91.0, "val/student_top5": 95.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    found = trial_of_run(tmp_path, "c0ffee", "a CPU")
    assert found.top1 == dict(student=81.0, teacher=90.0) and found.images == 300.0
    assert found.cka == CKA
    assert found.curve == [dict(epoch=1, student=70.0, teacher=91.0)] and found.run == ("a_b", "kd", 3, "c0ffee")
    (tmp_path / "summary.json").write_text(json.dumps(summary | dict(cell=None)))
    with pytest.raises(FBTError, match="a run of no matrix"):
        trial_of_run(tmp_path, "c0ffee", "a CPU")


# ---- intervals ------------------------------------------------------------------------------------------------------


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


# ---- splice ranking -------------------------------------------------------------------------------------------------


SPLICES = ["S1+T2-4", "S1-2+T3-4", "S1-3+T4", "T1-3+S4"]
SEEDS = {0: [80.0, 81.0, 82.0, 83.0], 1: [80.0, 81.0, 83.0, 82.0], 2: [81.0, 80.0, 82.0, 83.0]}


def splice_ranking_trial(splice: str, seed: int, **others: object) -> Trial:
    top1 = {"student": SEEDS[seed][SPLICES.index(splice)]}
    curve = [{"epoch": 1, "student": 10.0, "fusion": 50.0 + seed + SPLICES.index(splice)}]
    return Trial("a_b", splice, seed, "", top1, "test", None, curve, None, "", "", {}, **others)  # type: ignore[arg-type]


SPLICE_RANKING_TRIALS = [splice_ranking_trial(splice, seed) for splice in SPLICES for seed in SEEDS]


def test_tau_is_kendalls() -> None:
    """4 values have 6 pairs; with one swap 5 agree and 1 does not: 4 / 6."""
    assert tau(SEEDS[0], SEEDS[1]) == pytest.approx(4 / 6) and tau(SEEDS[0], SEEDS[0]) == 1
    assert tau(SEEDS[0], SEEDS[0][::-1]) == -1 and tau(SEEDS[0], [5.0] * 4) == 0


def test_predictors_are_held_against_what_seeds_allow() -> None:
    """Seeds 0 and 1, and 0 and 2, differ in one swap each, 1 and 2 in two: (4 + 4 + 2) / 18."""
    good, bad = (dict(zip(SPLICES, values, strict=True)) for values in ([1, 2, 3, 4], [4, 3, 2, 1]))
    ceiling, first, second = rank_correlations(
        SPLICE_RANKING_TRIALS, {"good": good, "bad": {**bad, "another": 9.0}}, draws=50
    )
    assert ceiling.one_seed == pytest.approx(10 / 18) and ceiling.mean is ceiling.best is None
    assert first.one_seed == pytest.approx((1 + 4 / 6 + 4 / 6) / 3) and second.one_seed == -first.one_seed
    assert first.mean == 1.0 and second.mean == -1.0 and first.splices == 4  # means: 80.33, 80.67, 82.33, 82.67
    assert first.best == pytest.approx((83 + 82 + 83) / 3) and second.best == pytest.approx((80 + 80 + 81) / 3)
    (even,) = rank_correlations(SPLICE_RANKING_TRIALS, {"even": dict.fromkeys(SPLICES, 1.0)}, draws=10)[1:]
    assert even.best == pytest.approx(sum(map(sum, SEEDS.values())) / 12) and even.one_seed == 0
    assert -1 <= first.low <= first.one_seed <= first.high <= 1


def test_splices_that_a_predictor_lacks_are_left_out_for_all() -> None:
    some = {splice: 1.0 * i for i, splice in enumerate(SPLICES[:3])}
    assert {a.splices for a in rank_correlations(SPLICE_RANKING_TRIALS, {"some": some}, draws=10)} == {3}
    with pytest.raises(ValueError, match="2 splices that all predictors rank, 3 seeds with all 4 splices: 3 and 2 are"):
        rank_correlations(SPLICE_RANKING_TRIALS, {"two": dict(list(some.items())[:2])})


def test_a_seed_that_lacks_a_splice_does_not_count() -> None:
    good = dict(zip(SPLICES, (1.0, 2.0, 3.0, 4.0), strict=True))
    ceiling, _ = rank_correlations(
        [t for t in SPLICE_RANKING_TRIALS if (t.method, t.seed) != ("S1-3+T4", 2)], {"good": good}, draws=10
    )
    assert ceiling.one_seed == pytest.approx(4 / 6) and ceiling.splices == 4
    assert list(random_search([t for t in SPLICE_RANKING_TRIALS if (t.method, t.seed) != ("S1-3+T4", 2)], 1)) == [0, 1]


def test_what_a_random_search_can_expect() -> None:
    """Of 4 splices, 6 draws of 2; validation has them in this order: of 3 draws the first is chosen, of 2, of 1."""
    validation = {"S1+T2-4": 4.0, "S1-2+T3-4": 1.0, "S1-3+T4": 3.0, "T1-3+S4": 2.0}
    runs = [
        replace(t, curve=[{"epoch": 1, "student": validation[t.method]}]) for t in SPLICE_RANKING_TRIALS if t.seed == 0
    ]
    assert random_search(runs, 2) == {0: pytest.approx((3 * 80 + 2 * 82 + 1 * 83) / 6)}
    assert random_search(runs, 1) == {0: pytest.approx((80 + 81 + 82 + 83) / 4)} and random_search(runs, 4) == {0: 80}


def test_predictors_that_a_run_leaves_behind() -> None:
    assert first_epoch(SPLICE_RANKING_TRIALS) == {splice: 51.0 + i for i, splice in enumerate(SPLICES)}
    found = dict(rows=["T1", "T2"], columns=["S1", "S2"], values=[[0.1, 0.2], [0.3, None]])
    made = splice_ranking_trial(SPLICES[0], 0, cka=dict(images=8, maps=dict(teacher_student=found)))
    junctions = {"one": [("S1", "T2")], "both": [("T1", "S2"), ("S1", "T1")], "nothing": [("S2", "T2")]}
    assert junction_cka(made, junctions) == {"one": 0.3, "both": pytest.approx(0.15), "nothing": 0.0}
    assert junction_cka(SPLICE_RANKING_TRIALS[0], junctions) == {}
