"""`fbt compare` and `fbt rank-splices`."""

from __future__ import annotations

import contextlib
import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import optuna
import pytest
from runs import TINY

from fbt_plugins.files import append_line
from fbt_plugins.report import figures, splice_ranking
from fbt_plugins.report.results import Trial

pytest.importorskip("optuna")
pytest.importorskip("scipy")
pytest.importorskip("matplotlib")


ROOT = Path(__file__).parents[3]
TOOL = ROOT / "tools" / "compare.py"
GRID = (
    TINY
    + """
pairs = dict(a_b=dict(reference=dict(fbt=dict(top1=81.6, source="a table"))), a_c=dict())
methods = dict(
    scratch=dict(model=dict(teacher=None, fusion=None, edges=[], feature_loss=None, logit_loss=None)),
    t_s=dict(about="T to S", model=dict(fusion=None, edges=["teacher_to_student"])),
    fbt=dict(model=dict()),
    either=dict(about="the better of two", pairs="a_b", best_of={0: ["t_s", "fbt"], 1: ["scratch", "t_s"]}),
)
seeds = [0, 1]
controls = dict(scratch="alone", t_s="T to S")
"""
)
# Stands for python and fbt train: takes the same arguments and leaves the same files.
PRETENDER = """#!{python} -S
import json, pathlib, sys, time
a = dict(zip(sys.argv[5::2], sys.argv[6::2]))
folder = pathlib.Path(a["--work-dir"])
with (pathlib.Path({log!r})).open("a") as log: log.write(" ".join(sys.argv[4:]) + "\\n")
if a["--method"] == "fbt" and pathlib.Path({fail!r}).exists():
    print("error: no such teacher"); sys.exit(2)
if pathlib.Path({slow!r}).exists():
    time.sleep(60)
seed = int(a["--seed"]); top1 = 80 + seed + dict(scratch=0, t_s=1, fbt=2)[a["--method"]]
(folder / "metrics.jsonl").write_text(json.dumps({{"epoch": 1, "val/student_top1": top1}}) + "\\n")
cell = dict(pair=a["--pair"], method=a["--method"], about="")
(folder / "summary.json").write_text(json.dumps(dict(
    cell=cell, seed=seed, split="test", student_top1=top1, seconds=5)))
"""


@pytest.fixture
def compare(tool: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Runs the tool in a folder of its own; exit code, lines on stdout and on stderr."""
    (tmp_path / "grid.py").write_text(GRID)
    names = {key: str(tmp_path / key) for key in ("log", "fail", "slow")}
    (tmp_path / "python").write_text(PRETENDER.format(python=sys.executable, **names))
    (tmp_path / "python").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(time, "sleep", lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.02)))

    def run(*args: str, pictures: bool = False) -> tuple[int, list[str], list[str]]:
        with monkeypatch.context() as patch:
            for picture in () if pictures else ("differences", "curves"):  # seconds in all
                patch.setattr(figures, picture, lambda *_: None)
            done = tool("compare", *args)
        return done.code, done.out.splitlines(), done.err.splitlines()

    return run


def calls(folder: Path) -> list[str]:
    return (folder / "log").read_text().splitlines() if (folder / "log").exists() else []


def lines(folder: Path) -> list[str]:
    return (folder / "trials.jsonl").read_text().splitlines()


def test_a_matrix_from_start_to_report(compare: Callable, tmp_path: Path) -> None:
    options = ("--cfg-options", "train_cfg.max_epochs=2")
    code, out, err = compare("grid.py", "--workers", "3", *options, pictures=True)
    assert code == 0 and not err
    assert sum(line.startswith("[") for line in out) == 12 and "[12/12]" in "".join(out)
    made = calls(tmp_path)
    assert len(set(made)) == 12
    for line in made:
        assert line.startswith("grid.py --pair a_") and "--resume auto --cfg-options train_cfg.max_epochs=2" in line
    report = tmp_path / "work_dirs" / "compare" / "grid"
    assert len(lines(report)) == 12 and not (tmp_path / "docs").exists()
    assert (report / "report.html").read_text().count("data:image/svg+xml") == 4  # of each pair two
    text = (report / "report.md").read_text()
    assert "+2.00 [+2.00, +2.00]" in text and "82.50 ± 0.71" in text and "81.60" not in text
    assert "82.00 ± 0.00" in next(line for line in text.splitlines() if "the better of two" in line)  # 82 + 0, 81 + 1

    again, _, _ = compare("grid.py", *options)
    assert again == 0 and calls(tmp_path) == made  # nothing is run twice


def test_a_fresh_clone_goes_on_from_the_file_alone(compare: Callable, tmp_path: Path) -> None:
    kept = ("--out", "docs/results/grid")
    compare("grid.py", "--pairs", "a_b", "--methods", "scratch", "t_s", *kept)
    assert len(calls(tmp_path)) == 4
    (tmp_path / "work_dirs").rename(tmp_path / "gone")
    code, out, _ = compare("grid.py", "--pairs", "a_b", *kept)
    assert code == 0 and len(calls(tmp_path)) == 6 and not any("to go on from them" in line for line in out)
    assert all("--method fbt" in line for line in calls(tmp_path)[4:])
    assert len(lines(tmp_path / "docs/results/grid")) == 6

    for results in ("docs/results/grid", "docs/results/grid/trials.jsonl"):  # the file is one thing, the report another
        code, _, _ = compare("grid.py", "--pairs", "a_b", "--results", results, "--out", "elsewhere")
        assert code == 0 and len(calls(tmp_path)) == 6
    assert {path.name for path in (tmp_path / "elsewhere").iterdir()} == {"report.md", "report.json", "report.html"}


def test_runs_that_are_kept_in_docs_are_named(compare: Callable, tmp_path: Path) -> None:
    one = ("grid.py", "--pairs", "a_b", "--methods", "t_s", "--seeds", "0")
    compare(*one, "--out", "docs/results/grid")
    _, out, _ = compare(*one)
    what = "docs/results/grid/trials.jsonl has finished runs; to go on from them: --out docs/results/grid"
    assert out[0] == what and lines(tmp_path / "work_dirs/compare/grid") == lines(tmp_path / "docs/results/grid")


def test_a_line_that_was_cut_is_told_and_comes_back_from_the_study(compare: Callable, tmp_path: Path) -> None:
    part = ("grid.py", "--pairs", "a_b", "--methods", "t_s")
    compare(*part)
    path = tmp_path / "work_dirs/compare/grid/trials.jsonl"
    whole = lines(path.parent)
    path.write_text(path.read_text()[:-9])
    code, out, _ = compare(*part)
    assert code == 0 and len(calls(tmp_path)) == 2
    assert any(
        "trials.jsonl: lines left out because they are not whole: 1 (the first is line 2)" in line for line in out
    )
    assert lines(path.parent) == [whole[0], whole[1][:-8], whole[1]]


def test_another_machine_takes_results_out_of_the_study(compare: Callable, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    compare("grid.py", "--pairs", "a_b", "--storage", url, "--out", "one")
    code, _, _ = compare("grid.py", "--pairs", "a_b", "--storage", url, "--out", "two")
    assert code == 0 and len(calls(tmp_path)) == 6
    assert sorted(lines(tmp_path / "one")) == sorted(lines(tmp_path / "two")) and len(lines(tmp_path / "one")) == 6


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (lambda line: line.replace('"a_b"', '"../../x"', 1), "pair: expected a name that can be a folder's"),
        pytest.param(
            lambda line: line.replace('"seed":0', '"seed":1', 1), "is that of a_b/t_s/seed 1", marks=pytest.mark.slow
        ),
        pytest.param(lambda line: "{", "is no trial", marks=pytest.mark.slow),
    ],
)
def test_a_result_that_another_machine_made_up_is_one_line(
    result: Callable, says: str, compare: Callable, tmp_path: Path
) -> None:
    arguments = ("grid.py", "--methods", "t_s", "--pairs", "a_b", "--seeds", "0")
    compare(*arguments)
    [database] = (tmp_path / "work_dirs").rglob("study.db")
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        [[line]] = connection.execute("SELECT value_json FROM trial_user_attributes WHERE key = 'result'")
        changed = json.dumps(result(json.loads(line)))
        connection.execute("UPDATE trial_user_attributes SET value_json = ? WHERE key = 'result'", [changed])
    [results] = (tmp_path / "work_dirs").rglob("trials.jsonl")
    results.unlink()
    before = sorted(tmp_path.rglob("*"))
    code, _, err = compare(*arguments)
    assert code == 2 and len(err) == 1 and err[0].startswith("error: --storage") and says in err[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_failure_is_one_line_and_hurts_nothing_else(compare: Callable, tmp_path: Path) -> None:
    (tmp_path / "fail").touch()
    code, _, err = compare("grid.py", "--pairs", "a_b", "--seeds", "0")
    assert code == 1 and len(err) == 1
    assert err[0].startswith("failed   a_b/fbt/seed 0: no such teacher (exit code 2; all of it is in ")
    assert "Not finished (1): a_b/fbt/seed 0" in (tmp_path / "work_dirs/compare/grid/report.md").read_text()
    (tmp_path / "fail").unlink()
    code, _, err = compare("grid.py", "--pairs", "a_b", "--seeds", "0")
    assert code == 0 and not err and len(calls(tmp_path)) == 4


@pytest.mark.slow
def test_results_of_another_config_do_not_count(compare: Callable, tmp_path: Path) -> None:
    compare("grid.py", "--pairs", "a_b", "--methods", "t_s")
    code, out, _ = compare("grid.py", "--pairs", "a_b", "--methods", "t_s", "--cfg-options", "train_cfg.max_epochs=9")
    assert code == 0 and len(calls(tmp_path)) == 4
    assert any("2 runs in work_dirs/compare/grid/trials.jsonl are of other configs" in line for line in out)


def test_ctrl_c_leaves_a_matrix_that_goes_on(
    compare: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow").touch()

    def pressed(_: float, sleep: Callable = time.sleep) -> None:
        if (tmp_path / "slow").exists() and calls(tmp_path):  # the first run has begun
            signal.raise_signal(signal.SIGINT)
        sleep(0.02)

    monkeypatch.setattr(time, "sleep", pressed)
    started = time.monotonic()
    code, out, _ = compare("grid.py", "--pairs", "a_b", "--methods", "t_s")
    assert code == 130 and out[-1] == "stopped  0 of 2 runs are done; the same command goes on"
    assert time.monotonic() - started < 20
    (tmp_path / "slow").unlink()
    code, _, _ = compare("grid.py", "--pairs", "a_b", "--methods", "t_s")
    assert code == 0 and len(lines(tmp_path / "work_dirs/compare/grid")) == 2


def test_a_database_that_goes_away_is_one_line(compare: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(self: object, wanted: object) -> None:
        raise optuna.exceptions.StorageInternalError("it is hidden") from OSError("connection lost")

    monkeypatch.setattr("fbt_plugins.jobs.study.SharedStudy.claim", gone)
    code, _, err = compare("grid.py", "--pairs", "a_b", "--methods", "t_s")
    assert code == 2 and err == ["error: --storage: OSError: connection lost; the same command goes on"]


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (("nowhere.py",), "no such file"),
        ((str(ROOT / "configs" / "tiny.py"),), "it is no matrix"),
        (("grid.py", "--pairs", "a_d"), "no pair 'a_d'; did you mean"),
        (("grid.py", "--methods", "fbtt"), "no method 'fbtt'; did you mean 'fbt'"),
        (("grid.py", "--workers", "0"), "--workers is 1 or more"),
        (("grid.py", "--seeds", "1", "0", "1"), "--seeds: 1 is there twice"),
        (("grid.py", "--methods", "fbt", "fbt"), "--methods: fbt is there twice"),
        (("grid.py", "--seeds", "x"), "invalid int value"),
        (("grid.py", "--seeds", "0", "-1"), "error: a seed is a whole number from 0 to 2**32 - 1, not -1"),
        (
            ("grid.py", "--results", "trials"),
            "trials: no finished runs; expected is a trials.jsonl, or a folder that has",
        ),
        (("grid.py", "--out", "grid.py/report"), "error: --out grid.py/report: it cannot be written ("),
        (("grid.py", "--storage", "postgres:/x"), "--storage postgres:/x"),
        (("grid.py", "--cfg-options", "modle.x=1"), "there is no modle in the config"),
    ],
)
def test_bad_input_is_one_line(compare: Callable, args: tuple[str, ...], reason: str) -> None:
    code, _, err = compare(*args)
    assert code == 2 and len(err) == 1 and reason in err[0], err


@pytest.mark.slow
def test_real_runs_and_a_worker_that_is_killed(tmp_path: Path) -> None:
    """SIGKILL in the middle: the run's own process saves and stops, and the same command goes on from there."""
    (tmp_path / "grid.py").write_text(GRID)
    command = [sys.executable, str(TOOL), "grid.py", "--pairs", "a_b", "--methods", "t_s", "fbt", "--seeds", "0"]
    command += ["--cfg-options", "train_cfg.max_epochs=30"]
    first = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    runs = tmp_path / "work_dirs" / "compare" / "grid" / "runs"
    for _ in range(600):
        if list(runs.rglob("epoch_*.pth")):
            break
        time.sleep(0.1)
    first.kill()
    first.wait()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "iterations done" in next(runs.glob("a_b/t_s/*/output.txt")).read_text()
    row = json.loads((tmp_path / "work_dirs/compare/grid/report.json").read_text())["pairs"][0]["rows"]
    assert [r["method"] for r in row] == ["t_s", "fbt", "either"] and row[1]["published"]["top1"] == 81.6


def test_all_cells_are_checked_before_the_first_runs(compare: Callable, tmp_path: Path) -> None:
    wrong = """
methods["typo"] = dict(model=dict(student=dict(name="resmlp_s4_patch4_23")))
pairs["a_d"] = dict(test_dataloader=dict(dataset=dict(type="ImageFolder", split="test", root="/nowhere")))
"""
    (tmp_path / "grid.py").write_text(GRID + wrong)
    code, out, err = compare("grid.py")
    assert code == 2 and not calls(tmp_path) and len(err) == 1, out
    assert err[0].startswith("error: a_b/typo and 2 more: model.student: timm has no model 'resmlp_s4_patch4_23'")
    code, _, err = compare("grid.py", "--methods", "t_s", "fbt")
    assert code == 2 and not calls(tmp_path) and len(err) == 1
    assert err[0].startswith("error: a_d/t_s and 1 more: test_dataloader: ImageFolder: no folder /nowhere/test")
    code, out, _ = compare("grid.py", "--pairs", "a_b", "--methods", "t_s", "--seeds", "0")
    assert code == 0 and len(calls(tmp_path)) == 1


def test_a_teacher_near_chance_is_told(compare: Callable, tmp_path: Path) -> None:
    python = tmp_path / "python"
    line = "THE TEACHER IS NEAR CHANCE: 6.4 % top-1, and guessing gives 10.0 %."
    python.write_text(python.read_text().replace("seed = int(", f"print('\u2502 {line}   \u2502'); seed = int(", 1))
    _, out, _ = compare("grid.py", "--pairs", "a_b", "--methods", "t_s", "--seeds", "0")
    assert f"[1/1] a_b/t_s/seed 0: 81.00 %; {line}" in out


# ---- rank splices ---------------------------------------------------------------------------------------------------


SPLICES = ["S1+T2-4", "S1-2+T3-4", "S1-3+T4", "T1-3+S4"]


def test_rankings_of_a_comparison(tool: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splice_ranking, "rank_correlations", partial(splice_ranking.rank_correlations, draws=100))
    folder = tmp_path / "splices"
    folder.mkdir()
    code, _, err = tool("rank_splices", folder)
    assert code == 2 and f"{folder}: no finished runs; expected is a trials.jsonl" in err
    (folder / "trials.jsonl").touch()
    code, _, err = tool("rank_splices", folder)
    assert code == 2 and f"{folder}: it has no finished run; needed are trainings of methods that are splices" in err
    values = [[0.1 * (i + j) for j in range(4)] for i in range(4)]
    names = dict(
        models=["teacher", "student"],
        rows=[f"T{i + 1}" for i in range(4)],
        columns=[f"S{i + 1}" for i in range(4)],
        values=values,
    )
    cka = dict(images=8, maps=dict(teacher_student=names))
    for place, method in enumerate(["t_s", *SPLICES]):
        for seed in (0, 1):
            top1 = {"student": 80.0 + place + seed}
            curve = [{"epoch": 1, "student": 5.0 - place}]
            made = Trial("a_b", method, seed, "", top1, "test", None, curve, None, "", "", {}, cka=cka)
            append_line(folder / "trials.jsonl", made.line())
    search = tmp_path / "search.json"
    search.write_text(json.dumps(dict(one_shot=dict(top1={splice: -i for i, splice in enumerate(SPLICES)}))))
    code, out, err = tool("rank_splices", folder, "--one-shot", search)
    assert code == 0, err
    written = json.loads((folder / "splice_ranking.json").read_text())
    found = {row["predictor"]: row for row in written["rankings"]}
    assert found["another seed"]["one_seed"] == 1 and found["one shot 1"]["one_seed"] == -1
    # Compared are S1 and T1, S2 and T2, S3 and T3, T3 and S3.
    assert found["CKA at the junctions, of t_s"]["one_seed"] == pytest.approx(5 / 30**0.5)
    assert found["one shot 1"]["best"] == 81.5 and "| one shot 1 " in out
    # Students have 81 to 84, and 82 to 85; of two, validation chooses the worse one.
    assert written["random_search"] == {"1": 83.0, "2": pytest.approx((3 * 81.5 + 2 * 82.5 + 83.5) / 6), "3": 81.75}
    assert (folder / "splice_ranking.md").read_text() in out
    picture = (folder / "splice_ranking.svg").read_text()
    best_on_top = [picture.index(f">{splice}<") for splice in reversed(SPLICES)]
    assert best_on_top == sorted(best_on_top, reverse=True) and ">without F<" in picture
    several = tmp_path / "searches.jsonl"
    several.write_text("\n".join([search.read_text()] * 2))
    code, out, err = tool("rank_splices", folder, "--one-shot", several)
    assert code == 0 and "one shot 2" in out and "one shot, mean" in out, err
    by_role = replace(made, method="C1-3+M4", seed=0)
    append_line(folder / "trials.jsonl", by_role.line())
    code, _, err = tool("rank_splices", folder)
    assert code == 2 and "a_b/C1-3+M4/seed 0 does not say which splice it is; name the method after that" in err
    rest = (folder / "trials.jsonl").read_text().splitlines()[:-1]
    lines = [*rest, *(replace(by_role, seed=seed, splices={"fusion": ["T1-2+S3-4"]}).line() for seed in (0, 1))]
    (folder / "trials.jsonl").write_text("\n".join(lines) + "\n")
    code, out, err = tool("rank_splices", folder)
    assert code == 0, err
    search.write_text("{}")
    code, _, err = tool("rank_splices", folder, "--one-shot", search)
    assert code == 2 and "not the search.json of a one-shot search" in err
    append_line(folder / "trials.jsonl", replace(made, config="another").line())
    code, _, err = tool("rank_splices", folder)
    assert code == 2 and "trainings of several configs with one name and seed; keep the lines of one of them" in err
