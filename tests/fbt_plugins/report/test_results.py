"""Files of finished runs: each run is read once, whoever has added it, and whatever a crash or a merge has left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from fbt_plugins.errors import FBTError
from fbt_plugins.files import append_line
from fbt_plugins.report import Trial, read_trials, trial_of_run, trials_file

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
    assert read(tmp_path / "nowhere.jsonl") == ([], [])


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
