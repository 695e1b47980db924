"""Studies that processes and machines share, and the workers that take runs from them."""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from forked import Typed
from optuna.trial import TrialState
from sqlalchemy import text

from fbt_plugins.errors import FBTError
from fbt_plugins.jobs import workers
from fbt_plugins.jobs.study import Claim, Run, SharedStudy, hidden
from fbt_plugins.jobs.workers import Process, Workers

pytest.importorskip("optuna")


RUNS = [Run("a_b", method, seed, "c0ffee") for method in ("kd", "fbt") for seed in range(3)]
WORKER = """
import sys
from fbt_plugins.jobs.study import Run, SharedStudy
url, count = sys.argv[1], int(sys.argv[2])
runs = [Run("a_b", "kd", seed, "c0ffee") for seed in range(count)]
study = SharedStudy("grid", url, Run)
study.add(runs)
while claim := study.claim(set(runs)):
    print(claim.run.seed, flush=True)
    study.finish(claim, [80.0], "{}")
"""
POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


def take_all(study: SharedStudy[Run], wanted: list[Run]) -> list[Run]:
    taken = []
    while claim := study.claim(set(wanted)):
        taken.append(claim.run)
    return taken


def check_workers(url: str, workers: int, count: int) -> None:
    """Several processes begin at once, add the same runs and take them: each run is taken by exactly one."""
    SharedStudy("grid", url, Run)  # so that they race for runs, not for tables
    processes = [Typed("-c", WORKER, url, count, cwd=Path.cwd()) for _ in range(workers)]
    outputs = [process.done() for process in processes]
    assert not any(done.code for done in outputs), [done.err for done in outputs]
    taken = Counter(int(seed) for done in outputs for seed in done.out.split())
    assert taken == Counter(range(count))


def test_each_run_is_taken_once(url: str) -> None:
    first, second = SharedStudy("grid", url, Run), SharedStudy("grid", url, Run)
    first.add(RUNS)
    second.add(RUNS)
    assert len(first.trials()) == len(RUNS)
    assert take_all(second, RUNS[:2]) == RUNS[:2]
    assert take_all(first, RUNS) == RUNS[2:]


def test_a_run_that_was_added_twice_is_taken_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    study = SharedStudy("grid", url, Run)
    study.add(RUNS)
    with monkeypatch.context() as patch:  # two machines looked before either had added anything
        patch.setattr(study, "trials", lambda states=None: [])
        study.add(RUNS)
    assert len(study.trials()) == 2 * len(RUNS)
    assert sorted(take_all(study, RUNS)) == sorted(RUNS)
    assert len(study.trials([TrialState.FAIL])) == len(RUNS)


def test_processes_that_race_on_sqlite(url: str) -> None:
    check_workers(url, workers=2, count=12)


def test_nobody_takes_a_run_between_anothers_look_and_grasp(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = SharedStudy("grid", url, Run), SharedStudy("grid", url, Run)
    first.add(RUNS[:1])
    taken: list = []
    other = threading.Thread(target=lambda: taken.append(second.claim(set(RUNS))))
    check = first.storage.check_trial_is_updatable

    def after_the_look(trial: int, state: TrialState) -> None:
        other.start()
        other.join(timeout=1.0)  # it cannot end before this transaction does
        check(trial, state)

    monkeypatch.setattr(first.storage, "check_trial_is_updatable", after_the_look)
    assert first.claim(set(RUNS)) is not None
    other.join()
    assert taken == [None]


class Clock:
    """Time that passes when a test says so; heartbeats are the database's times, by whatever clock that has."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("fbt_plugins.jobs.study.time", SimpleNamespace(monotonic=lambda: self.now))

    def pass_by(self, study: SharedStudy[Run], seconds: int, beating: Claim[Run] | None = None) -> list[Claim[Run]]:
        """What a study that looks each 5 seconds takes in the meantime."""
        taken = []
        for _ in range(0, seconds, 5):
            self.now += 5
            if beating is not None:
                beat_at(study, beating, self.now)
            taken += [claim for _ in range(2) if (claim := study.claim(set(RUNS)))]
        return taken


def beat_at(study: SharedStudy[Run], claim: Claim[Run], at: float) -> None:
    """A heartbeat at a time of the database's clock."""
    when = datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
    with study.storage.engine.begin() as connection:
        statement = text("UPDATE trial_heartbeats SET heartbeat = :at WHERE trial_id = :trial")
        connection.execute(statement, {"at": when, "trial": claim.trial})


def test_a_run_whose_owner_died_is_free_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    dead = SharedStudy("grid", url, Run)
    dead.add(RUNS[:2])
    lost, kept = dead.claim(set(RUNS)), dead.claim(set(RUNS))
    assert lost is not None and kept is not None
    alive = SharedStudy("grid", url, Run)
    assert not clock.pass_by(alive, 90, beating=kept)
    [again] = clock.pass_by(alive, 120, beating=kept)  # the other's owner has sent heartbeats
    assert again.run == lost.run
    dead.finish(lost, [80.0], "{}")  # it was only slow: its result is not counted twice
    assert not dead.trials([TrialState.COMPLETE])


@pytest.mark.parametrize("jump", [91, *(pytest.param(jump, marks=pytest.mark.slow) for jump in (-7200, 7200))])
def test_clocks_that_jump_make_nobody_dead(jump: int, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    owner, other = (SharedStudy("grid", url, Run) for _ in range(2))
    owner.add(RUNS[:1])
    claim = owner.claim(set(RUNS))
    assert claim is not None and other.claim(set(RUNS)) is None
    beat_at(owner, claim, time.time() - jump)  # the last one was before the database's clock jumped
    assert not clock.pass_by(other, 40) and not clock.pass_by(owner, 400)
    assert owner.trials()[0].state is TrialState.RUNNING
    clock.now += 3600  # the whole machine was asleep, the owner too
    assert not clock.pass_by(other, 20)


def test_what_failed_is_tried_by_the_next_command_only(url: str) -> None:
    study = SharedStudy("grid", url, Run)
    study.add(RUNS[:1])
    claim = study.claim(set(RUNS))
    assert claim is not None
    study.fail(claim, "no teacher")
    assert study.claim(set(RUNS)) is None
    assert study.trials([TrialState.FAIL])[0].user_attrs["error"] == "no teacher"
    study.add(RUNS[:1])
    assert study.claim(set(RUNS)) is not None


def test_a_run_can_be_given_back(url: str) -> None:
    study = SharedStudy("grid", url, Run)
    study.add(RUNS[:1])
    claim = study.claim(set(RUNS))
    assert claim is not None
    study.give_back(claim)
    again = study.claim(set(RUNS))
    assert again is not None and again == claim


def test_a_trial_of_something_else_is_one_line(url: str) -> None:
    study = SharedStudy("grid", url, Run)
    study.add([Run("../../x", "kd", 0, "c0ffee")])
    with pytest.raises(FBTError, match=r"--storage: trial 0 is no run of ours \(pair: str '../../x'\)"):
        study.claim(set(RUNS))


def test_another_config_is_another_run(url: str) -> None:
    study = SharedStudy("grid", url, Run)
    study.add(RUNS[:1])
    changed = Run("a_b", "kd", 0, "decaf")
    study.add([changed])
    assert take_all(study, [changed]) == [changed]


@pytest.mark.parametrize("url", ["sqlite:////proc/nowhere/study.db", "postgres:/x", "mysql+none://host/db"])
def test_a_database_that_is_not_there_is_one_line(url: str) -> None:
    with pytest.raises(FBTError, match=r"--storage .*") as caught:
        SharedStudy("grid", url, Run)
    assert len(caught.value.lines()) == 1


def test_passwords_are_hidden() -> None:
    assert hidden("x --storage postgresql+psycopg://me:pa-ss@host:5432/db") == (
        "x --storage postgresql+psycopg://me:***@host:5432/db"
    )
    assert hidden("sqlite:////tmp/a@b.db") == "sqlite:////tmp/a@b.db"


# ---- PostgreSQL ------------------------------------------------------------------------------------------------------


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[str]:
    """A server of this test's own, reached by a socket in its folder; it refuses to run as root."""
    pytest.importorskip("psycopg")
    if POSTGRES is None:
        pytest.skip("no PostgreSQL server is installed")
    user: dict = {}
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("PostgreSQL does not run as root")
        import pwd

        try:
            user = {"user": pwd.getpwnam("postgres").pw_uid}
        except KeyError:
            pytest.skip("there is no user postgres")
    folder = Path("/tmp") / f"fbt_postgres_{os.getpid()}"  # a socket's path is short, and pytest's folders are private
    folder.mkdir()
    if user:
        os.chown(folder, user["user"], -1)
    run = dict(check=True, capture_output=True, cwd=folder, **user)
    data = folder / "data"
    try:
        subprocess.run([POSTGRES / "initdb", "-D", data, "-U", "fbt", "-A", "trust"], **run)
        options = f"-k {folder} -c listen_addresses='' -c fsync=off"
        subprocess.run([POSTGRES / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", options, "start"], **run)
        try:
            yield f"postgresql+psycopg://fbt@/postgres?host={folder}"
        finally:
            subprocess.run([POSTGRES / "pg_ctl", "-D", data, "-m", "immediate", "stop"], **run)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_processes_that_race_on_postgresql(postgres: str) -> None:
    check_workers(postgres, workers=3, count=30)


@pytest.mark.slow
def test_runs_come_back_on_postgresql_too(postgres: str) -> None:
    test_a_run_whose_owner_died_is_free_again(postgres)


# ---- workers --------------------------------------------------------------------------------------------------------


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
