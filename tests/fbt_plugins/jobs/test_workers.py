"""Workers: when they look at what others do, and which GPU each gets."""

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


class Crowd(Sleepers):
    """Eight jobs that last until they are told to end; each has begun on the GPU of its environment."""

    def __init__(self, workers: int) -> None:
        study: Any = Study()
        study.waiting = [f"job {i}" for i in range(8)]
        super().__init__(study, list(study.waiting), workers)
        self.ended: set[str] = set()

    def is_done(self, job: str) -> bool:
        return job in self.ended

    def plan(self, claim: Claim[str]) -> tuple[Path, list[str] | None]:
        return Path(), ["train"]

    def finish(self, process: Process[str], code: int) -> None:
        self.ended.add(process.claim.run)


class Popen:
    """A process that ends when it is told to."""

    def __init__(self, visible: str | None) -> None:
        self.visible, self.returncode = visible, None

    def poll(self) -> int | None:
        return self.returncode


@pytest.mark.parametrize(
    ("visible", "count", "given"),
    [
        (None, 4, ["0", "1", "2", "3"]),
        ("5,2, 7,3", 4, ["5", "2", "7", "3"]),
        ("GPU-a1,GPU-b2,-1", 2, ["GPU-a1", "GPU-b2"]),
    ],
)
def test_each_worker_takes_a_free_gpu_of_those_that_the_user_gave(
    visible: str | None, count: int, given: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers.torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(workers, "LOOK", 0.0)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    crowd = Crowd(workers=count)

    def begin(folder: Path, command: list[str], gpu: str | None) -> Any:
        return Popen(crowd._environment(gpu).get("CUDA_VISIBLE_DEVICES"))

    monkeypatch.setattr(crowd, "_begin", begin)
    crowd.step()
    assert [process.popen.visible for process in crowd.running] == given  # type: ignore[union-attr]
    for first in (0, 0, 1):  # some end, in another order than they began
        crowd.running[first].popen.returncode = 0  # type: ignore[union-attr]
        crowd.step()
        assert sorted(process.popen.visible for process in crowd.running) == sorted(given)  # type: ignore[union-attr]


def test_more_workers_than_gpus_share_them_evenly_and_one_gpu_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(workers.torch.cuda, "device_count", lambda: 2)
    crowd = Crowd(workers=5)
    monkeypatch.setattr(crowd, "_begin", lambda folder, command, gpu: Popen(gpu))
    crowd.step()
    assert [process.gpu for process in crowd.running] == ["0", "1", "0", "1", "0"]
    monkeypatch.setattr(workers.torch.cuda, "device_count", lambda: 1)
    alone = Crowd(workers=2)
    assert alone._free_gpu() is None and "CUDA_VISIBLE_DEVICES" not in alone._environment(None)
