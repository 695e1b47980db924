"""What a comparison chooses, and what it shows while it runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from fbt_plugins.compare import live_table as screen
from fbt_plugins.compare.runs import Runs
from fbt_plugins.compare.tuning import as_base, as_table, choose
from fbt_plugins.config.hashing import config_hash
from fbt_plugins.config.loading import complete, load_matrix
from fbt_plugins.config.matrix import Matrix
from fbt_plugins.errors import FBTError
from fbt_plugins.files import append_line
from fbt_plugins.jobs.study import Claim, Run, SharedStudy
from fbt_plugins.jobs.workers import Process
from fbt_plugins.report import Trial

pytest.importorskip("optuna")


CONFIGS = Path(__file__).parents[3] / "configs"


def weight(value: float) -> dict[str, Any]:
    return dict(model=dict(task_loss=dict(weight=value)))


MATRIX = Matrix(
    base={},
    pairs={"a.1": dict(methods=dict(kd=weight(1.0), fbt=weight(1.0))), "a.2": dict(methods=dict(kd=weight(2.0)))},
    methods=dict(kd={}, fbt={}, other=dict(pairs=[])),
    seeds=(10, 11),
    controls={},
)


def trials(**top1: tuple[float, ...]) -> list[Trial]:
    """Of each method, of setting 1 the first two seeds, of setting 2 the others."""
    cells = [("a.1", 10), ("a.1", 11), ("a.2", 10), ("a.2", 11)]
    return [
        Trial(pair, method, seed, "", {"student": value}, "validation", None, [], None, "", "", {})
        for method, values in top1.items()
        for (pair, seed), value in zip(cells, values, strict=True)
    ]


def test_the_best_mean_over_seeds_is_taken_and_of_equals_the_first() -> None:
    choices = choose(MATRIX, trials(kd=(80.0, 81.0, 79.0, 84.0), fbt=(80.0, 82.0, 82.0, 80.0)))
    assert [(c.method, c.chosen, dict(c.settings)) for c in choices] == [
        ("kd", "a.2", weight(2.0)),
        ("fbt", "a.1", weight(1.0)),
    ]
    assert as_table(choices)[2:] == [
        "| kd | 80.50 | **81.50** | model.task_loss.weight = 2.0 |",
        "| fbt | **81.00** | 81.00 | model.task_loss.weight = 1.0 |",
    ]
    assert json.loads(json.dumps(as_base(choices)))["_tuned"]["kd"] == dict(
        settings=weight(2.0), chosen="a.2", validation_top1={"a.1": 80.5, "a.2": 81.5}
    )


def test_nothing_is_chosen_before_all_methods_had_their_tries() -> None:
    done = trials(kd=(80.0, 81.0, 79.0, 84.0), fbt=(80.0, 82.0, 82.0, 80.0))
    with pytest.raises(FBTError, match=r"1 runs are missing, the first is a\.2/fbt/seed 11"):
        choose(MATRIX, done[:-1])


def test_nothing_is_chosen_by_the_test_split() -> None:
    done = trials(kd=(80.0, 81.0, 79.0, 84.0), fbt=(80.0, 82.0, 82.0, 80.0))
    object.__setattr__(done[0], "split", "test")
    with pytest.raises(FBTError, match=r"a\.1/kd/seed 10: tuning is for validation, and this is of the test"):
        choose(MATRIX, done)


def test_settings_are_chosen_by_what_the_runs_measured() -> None:
    done = trials(kd=(80.0, 81.0, 79.0, 84.0), fbt=(80.0, 82.0, 82.0, 80.0))
    object.__setattr__(done[0], "measure", "knn")
    with pytest.raises(FBTError, match="runs measured different things, knn and top1"):
        choose(MATRIX, done)
    for trial in done:
        object.__setattr__(trial, "measure", "knn")
    assert as_base(choose(MATRIX, done))["_tuned"]["kd"]["validation_knn"] == {"a.1": 80.5, "a.2": 81.5}


def test_the_choice_of_the_study_comes_out_of_its_tuning_again(
    tool: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config, results = CONFIGS / "fashion_mnist_tuning.py", CONFIGS.parent / "docs" / "results" / "fashion_mnist_tuning"
    code, _, err = tool("choose", config)
    assert code == 2 and "work_dirs/compare/fashion_mnist_tuning: no finished runs; expected is a trials.jsonl" in err
    code, _, err = tool("choose", config, "--results", results, "--out", "chosen.json")
    assert code == 0, err
    assert Path("chosen.json").read_text() == (CONFIGS / "_base_" / "fashion_mnist_tuned.json").read_text()


def test_every_method_of_the_study_has_as_many_tries_and_no_test_split() -> None:
    tuning, study = (load_matrix(CONFIGS / f"fashion_mnist{name}.py") for name in ("_tuning", ""))
    others = {"t_s_x2", *(f"fbt_{letter}" for letter in "abcdefg"), "fbt_warm", "fbt_ramp", "fbt_gate"}
    of_study = {method for pair, method in study.cells() if pair == "convnext_resmlp"} - others
    assert {method for _, method in tuning.cells()} == of_study
    assert len(tuning.cells()) == 4 * len(of_study) and not set(tuning.seeds) & set(study.seeds)
    for method in of_study:
        cells = [tuning.cell(pair, method) for pair in tuning.pairs]
        assert len({config_hash(complete(cell, {})) for cell in cells}) == 4, method
        assert all(cell["test_dataloader"] is cell["test_cfg"] is cell["test_evaluator"] is None for cell in cells)


def test_what_was_chosen_reaches_the_study_and_leaves_the_tuning_as_it_was(tmp_path: Path) -> None:
    for path in CONFIGS.rglob("*"):
        if path.is_file() and path.suffix in (".py", ".json"):
            copy = tmp_path / path.relative_to(CONFIGS)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    before = load_matrix(tmp_path / "fashion_mnist_tuning.py")
    (last,) = list(before.pairs)[-1:]
    tuned = {method: {"settings": own} for method, own in before.pairs[last]["methods"].items() if method != "t_s_x2"}
    (tmp_path / "_base_" / "fashion_mnist_tuned.json").write_text(json.dumps({"_tuned": tuned}))
    study, after = (load_matrix(tmp_path / f"fashion_mnist{name}.py") for name in ("", "_tuning"))
    for method in ("scratch", "kd", "fbt", "fbt_s1-3_t4"):
        kept, given = (m.cell(pair, method) for m, pair in ((after, last), (study, "convnext_resmlp")))
        assert given["model"] == kept["model"], method
    for method, whose in (("t_s_x2", "t_s"), ("fbt_c", "fbt"), ("fbt_g", "fbt")):
        task_loss = study.cell("convnext_resmlp", method)["model"]["task_loss"]
        assert task_loss == after.cell(last, whose)["model"]["task_loss"], method
    for cell in before.cells():
        assert config_hash(complete(before.cell(*cell), {})) == config_hash(complete(after.cell(*cell), {})), cell


def test_the_hash_does_not_depend_on_where_the_data_lie() -> None:
    here, there = (dict(test_dataloader=dict(dataset=dict(root=root))) for root in ("here", "there"))
    assert config_hash(here) == config_hash(there) != config_hash(dict(test_dataloader=None))


# ---- live table -----------------------------------------------------------------------------------------------------


RUNS = [Run("a_b", method, seed, "c0ffee") for method in ("kd", "t_s", "fbt") for seed in range(2)]
TRIAL = Trial("a_b", "kd", 0, "", {"student": 80.0}, "test", None, [], None, "c0ffee", "a CPU", {"seconds": 1800.0})


def shown(runs: Runs, monkeypatch: pytest.MonkeyPatch, height: int) -> str:
    console = Console(width=100, height=height)
    monkeypatch.setattr(screen, "console", console)
    with console.capture() as captured:
        console.print(screen.Screen(runs).table())
    return captured.get()


def test_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "trials.jsonl"
    for trial in (TRIAL, replace(TRIAL, seed=1, top1={"student": 81.0})):
        append_line(results, trial.line())
    runs = Runs(SharedStudy("grid", f"sqlite:///{tmp_path / 'study.db'}", Run), RUNS, [], tmp_path / "runs", results)
    runs.failed[RUNS[2]] = "no teacher"
    runs.running = [Process(Claim(RUNS[4], 1, 0), tmp_path, SimpleNamespace())]  # type: ignore[arg-type]
    lines = shown(runs, monkeypatch, height=40).splitlines()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert cells == [
        ["a_b", "kd", "2/2", "", "", "80.50 ± 0.71"],
        ["a_b", "t_s", "0/2", "", "1", "–"],
        ["a_b", "fbt", "0/2", "1", "", "–"],
    ]
    assert lines[-1].startswith("3 of 6 runs left, about 1.5 h")
    short = " ".join(shown(runs, monkeypatch, height=9).split())
    assert "kd" not in short and "fbt" in short and "cells not shown: 1" in short
