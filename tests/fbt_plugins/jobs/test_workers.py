"""Workers: when they look at what others do."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna")

from fbt_plugins.jobs import workers
from fbt_plugins.jobs.study import Claim
from fbt_plugins.jobs.workers import Process, Workers


class Study:
    """One job that waits, and nobody else."""

    heartbeat = 60.0

    def __init__(self) -> None:
        self.looks, self.waiting = 0, ["job"]

    def trials(self, states: Any = None) -> list:
        self.looks += states is None
        return []

    def free_the_dead(self) -> None:
        pass

    def claim(self, jobs: set[str]) -> Claim[str] | None:
        return Claim(self.waiting.pop(), 0, 0) if self.waiting and jobs else None

    def beat(self, claim: Claim[str]) -> None:
        pass


class Sleepers(Workers[str]):
    folder: Path
    done = False

    def is_done(self, job: str) -> bool:
        return self.done

    def plan(self, claim: Claim[str]) -> tuple[Path, list[str] | None]:
        return self.folder, [sys.executable, "-S", "-c", "import time; time.sleep(0.3)"]

    def finish(self, process: Process[str], code: int) -> None:
        self.done = True

    def learn(self, trial: Any) -> None:
        raise AssertionError("there is nobody else")


@pytest.mark.parametrize(("seconds", "often"), [(1000.0, False), (0.0, True)])
def test_the_study_is_read_now_and_then_and_when_a_job_has_ended(
    seconds: float, often: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "LOOK", seconds)
    study: Any = Study()
    sleepers = Sleepers(study, ["job"])
    sleepers.folder = tmp_path
    steps = 1
    while sleepers.step():
        steps += 1
        time.sleep(0.02)
    assert sleepers.done and steps > 2
    assert study.looks == (steps if often else 2)
