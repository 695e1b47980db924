"""Who takes which run: each once, whoever asks, and again only where its owner died or it failed."""

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

import pytest

pytest.importorskip("optuna")
from optuna.trial import TrialState
from sqlalchemy import text

from fbt_plugins.errors import FBTError
from fbt_plugins.jobs.study import Claim, Run, SharedStudy, hidden

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
    command = [sys.executable, "-c", WORKER, url, str(count)]
    SharedStudy("grid", url, Run)  # so that they race for runs, not for tables
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(workers)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert not any(process.returncode for process in processes), [err for _, err in outputs]
    taken = Counter(int(seed) for out, _ in outputs for seed in out.split())
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
        """What a study that looks each 2 seconds takes in the meantime."""
        taken = []
        for _ in range(0, seconds, 2):
            self.now += 2
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


@pytest.mark.parametrize("jump", [-7200, 91, 7200])
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
