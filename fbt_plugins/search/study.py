"""A matrix as an Optuna study: which runs there are, and who has taken which."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from ..errors import FBTError
from ..registry import one_line

FAILURES = (SQLAlchemyError, optuna.exceptions.OptunaError)
"""How a database says that it is gone or will not answer."""

OPEN = (TrialState.WAITING, TrialState.RUNNING, TrialState.COMPLETE)


@dataclass(frozen=True, order=True)
class Run:
    """One run of a matrix.

    Attributes:
        pair, method, seed: which.
        config: hash of its config, the same for all seeds.
    """

    pair: str
    method: str
    seed: int
    config: str

    @classmethod
    def of(cls, trial: FrozenTrial) -> Run:
        """The run that a trial of the study is for."""
        return cls(**{key: trial.user_attrs[key] for key in ("pair", "method", "seed", "config")})

    def __str__(self) -> str:
        return f"{self.pair}/{self.method}/seed {self.seed}"


@dataclass(frozen=True)
class Claim:
    """A run that this process has taken, and nobody else has.

    Attributes:
        run: which.
        trial: its number in the storage.
    """

    run: Run
    trial: int


class MatrixStudy:
    """The runs of a matrix in a database that many machines may share.

    A run is taken in one transaction. Whoever has it sends heartbeats; when those stop, the run is free again.

    Args:
        name: of the study.
        url: of the database, as SQLAlchemy has it; its folder is made where it is SQLite's.
        heartbeat: seconds between two heartbeats.
        grace: seconds without one after which a run's owner counts as dead.

    Raises:
        FBTError: if the database cannot be reached.
    """

    def __init__(self, name: str, url: str, heartbeat: int = 15, grace: int = 90) -> None:
        self.heartbeat = heartbeat
        sqlite = url.startswith("sqlite:")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        retry = optuna.storages.RetryHeartbeatStaleTrialCallback()
        try:
            if sqlite:
                Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            self.storage = RDBStorage(
                url,
                engine_kwargs={"connect_args": {"timeout": 60}} if sqlite else {"pool_pre_ping": True},
                heartbeat_interval=heartbeat,
                grace_period=grace,
                heartbeat_stale_trial_callback=retry,
            )
            if sqlite:
                _lock_whole_transactions(self.storage.engine)
            self.study = optuna.create_study(
                study_name=name, storage=self.storage, direction="maximize", load_if_exists=True
            )
        except (*FAILURES, ImportError, OSError) as error:
            raise FBTError(f"--storage {hidden(url)}: {in_one_line(error)}") from error

    def trials(self, states: Iterable[TrialState] | None = None) -> list[FrozenTrial]:
        """All trials, or those in some states, in the order in which they were added."""
        return self.study.get_trials(deepcopy=False, states=None if states is None else tuple(states))

    def add(self, runs: Iterable[Run]) -> None:
        """Adds the runs that are neither waiting, running nor finished; those that failed are tried again.

        Two machines that start at the same moment may both add one; :meth:`claim` then takes the first only.
        """
        there = {Run.of(trial) for trial in self.trials(OPEN)}
        new = [run for run in dict.fromkeys(runs) if run not in there]
        self.study.add_trials([create_trial(state=TrialState.WAITING, user_attrs=vars(run)) for run in new])

    def claim(self, wanted: set[Run]) -> Claim | None:
        """Takes a waiting run; None if there is none of those wanted."""
        fail_stale_trials(self.study)
        trials = self.trials(OPEN)
        first = {Run.of(trial): trial.number for trial in reversed(trials)}
        for trial in trials:
            run = Run.of(trial)
            if trial.state is not TrialState.WAITING or run not in wanted:
                continue
            # Before it is taken: were this process killed in between, nobody would miss its heartbeats.
            self.storage.record_heartbeat(trial._trial_id)
            with suppress(optuna.exceptions.UpdateFinishedTrialError):
                if not self.storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                    continue
                if trial.number == first[run]:
                    return Claim(run, trial._trial_id)
                self._end(trial._trial_id, TrialState.PRUNED)
        return None

    def beat(self, claim: Claim) -> None:
        """Says that a run's owner is alive."""
        self.storage.record_heartbeat(claim.trial)

    def finish(self, claim: Claim, top1: float, result: str) -> None:
        """Records a finished run, with the text of its trial file for machines that lack the file."""
        self._end(claim.trial, TrialState.COMPLETE, [top1], result=result)

    def fail(self, claim: Claim, reason: str) -> None:
        """Records in one line why a run has failed."""
        self._end(claim.trial, TrialState.FAIL, error=reason)

    def give_back(self, claim: Claim) -> None:
        """Lets others, or this machine another time, have a run that was begun."""
        self._end(claim.trial, TrialState.WAITING)

    def _end(self, trial: int, state: TrialState, values: list[float] | None = None, **notes: str) -> None:
        """Nothing happens where others have taken this process for dead: then they do the run again."""
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            for key, text in notes.items():
                self.storage.set_trial_user_attr(trial, key, text)
            self.storage.set_trial_state_values(trial, state, values)


def in_one_line(error: BaseException) -> str:
    """What a database complains about; optuna hides that behind an error of its own."""
    return hidden(one_line(error.__cause__ or error))[:300]


def hidden(url: str) -> str:
    """A text in which no URL has its password any more."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", url)


def _lock_whole_transactions(engine: Any) -> None:
    """Lets SQLite lock when a transaction begins, not when it first writes: what it has read then stays true.

    Without it two processes may both read that a run is waiting, and both take it.
    """

    @event.listens_for(engine, "connect")
    def leave_transactions_to_us(connection: Any, _: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # connections made before this
