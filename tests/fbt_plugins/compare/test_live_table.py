"""The live table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("optuna")
from rich.console import Console

from fbt_plugins.compare import live_table as screen
from fbt_plugins.compare.runs import Runs
from fbt_plugins.files import append_line
from fbt_plugins.jobs.study import Claim, Run, SharedStudy
from fbt_plugins.jobs.workers import Process
from fbt_plugins.report import Trial

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
