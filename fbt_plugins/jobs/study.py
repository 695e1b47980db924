"""Many runs as an Optuna study: which there are, and who has taken which."""

from __future__ import annotations

import copy
import re
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Generic, Literal, Self, TypeVar

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import event, text
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError

from ..errors import FBTError, is_name, one_line, short

FAILURES = (SQLAlchemyError, optuna.exceptions.OptunaError)
"""Errors of a database that is gone or does not answer."""

Direction = Literal["maximize", "minimize"]

_HEARTBEATS = text(
    "SELECT t.trial_id, h.heartbeat FROM trial_heartbeats h JOIN trials t ON t.trial_id = h.trial_id "
    "JOIN studies s ON s.study_id = t.study_id WHERE s.study_name = :name AND t.state = 'RUNNING' ORDER BY t.trial_id"
)
"""Optuna says which trials are stale by its database's clock alone, and does not give away the heartbeats."""

OPEN = (TrialState.WAITING, TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True, order=True)
class Job:
    """Something that is to be done once; its fields say what, and a trial has them as its user attributes."""

    @classmethod
    def of(cls, trial: FrozenTrial) -> Self:
        """What a trial of the study is for.

        Raises:
            FBTError: if it is something else: names become folders' names, and others may write to the database.
        """
        kinds = {"str": is_name, "int": lambda value: type(value) is int}
        for field in fields(cls):
            value = trial.user_attrs.get(field.name)
            if not kinds[str(field.type)](value):
                what = f"trial {trial.number} is no {cls.__name__.lower()} of ours ({field.name}: {short(value)})"
                raise FBTError(f"--storage: {what}; take another database")
        return cls(**{field.name: trial.user_attrs[field.name] for field in fields(cls)})


@dataclass(frozen=True, order=True)
class Run(Job):
    """One run of a matrix.

    Attributes:
        pair, method, seed: which.
        config: hash of its config, the same for all seeds.
    """

    pair: str
    method: str
    seed: int
    config: str

    def __str__(self) -> str:
        return f"{self.pair}/{self.method}/seed {self.seed}"


@dataclass(frozen=True, order=True)
class Slot(Job):
    """One of the trials that a search has: what it tries is chosen when it is taken.

    Attributes:
        number: from 0.
    """

    number: int

    def __str__(self) -> str:
        return f"trial {self.number}"


J = TypeVar("J", bound=Job)


@dataclass(frozen=True)
class Claim(Generic[J]):
    """A job that this process has taken, and nobody else has.

    Attributes:
        run: which.
        trial: by which the storage knows it.
        number: of the trial in the study, from 0.
    """

    run: J
    trial: int
    number: int


class SharedStudy(Generic[J]):
    """Jobs in a database that many machines may share.

    A job is taken in one transaction. Whoever has it sends heartbeats; when those stop, the job is free again. One sees
    that they stop by looking again and again, never by comparing clocks: two machines' differ, and one's own may jump.

    Args:
        name: of the study.
        url: of the database, as SQLAlchemy has it; its folder is made where it is SQLite's.
        kind: of job.
        directions: "maximize" or "minimize", of each value that a finished job has.
        heartbeat: seconds between two heartbeats.
        grace: seconds for which this process must see none before a job's owner counts as dead.

    Raises:
        FBTError: if the database cannot be reached.
    """

    def __init__(
        self,
        name: str,
        url: str,
        kind: type[J],
        directions: Sequence[Direction] = ("maximize",),
        heartbeat: int = 15,
        grace: int = 90,
    ) -> None:
        self.name, self.kind, self.url, self.heartbeat, self.grace = name, kind, url, heartbeat, grace
        self._mine: set[int] = set()
        self._silent: dict[int, tuple[object, float]] = {}
        self._looked = time.monotonic()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self._retry = optuna.storages.RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)
        try:
            if url.startswith("sqlite:"):
                Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            for _ in range(2):
                with suppress(IntegrityError, OperationalError):  # another process makes the same tables at this moment
                    self._open(directions)
                    return
                time.sleep(0.5)
            self._open(directions)
        except (*FAILURES, ImportError, OSError) as error:
            raise FBTError(f"--storage {hidden(url)}: {complaint(error)}") from error

    def _open(self, directions: Sequence[Direction]) -> None:
        """Opens the study, and makes its tables where there are none."""
        sqlite = self.url.startswith("sqlite:")
        self.storage = RDBStorage(
            self.url,
            engine_kwargs={"connect_args": {"timeout": 60}} if sqlite else {"pool_pre_ping": True},
            heartbeat_interval=self.heartbeat,
            grace_period=self.grace,
        )
        if sqlite:
            _lock_whole_transactions(self.storage.engine)
        self.study = optuna.create_study(
            study_name=self.name, storage=self.storage, directions=list(directions), load_if_exists=True
        )

    def trials(self, states: Iterable[TrialState] | None = None) -> list[FrozenTrial]:
        """All trials, or those in some states, in the order in which they were added."""
        return self.study.get_trials(deepcopy=False, states=None if states is None else tuple(states))

    def trial(self, claim: Claim[J]) -> FrozenTrial:
        """A claim's own trial."""
        return self.storage.get_trial(claim.trial)

    def add(self, jobs: Iterable[J], fixed: Mapping[J, Mapping[str, Any]] | None = None) -> None:
        """Adds the jobs that are neither waiting, running nor finished; those that failed are tried again.

        Two machines that start at the same moment may both add one; :meth:`claim` then takes the first only.

        Args:
            jobs: what is to be done.
            fixed: parameters that no sampler chooses, by job.
        """
        there = {self.kind.of(trial) for trial in self.trials(OPEN)}
        new = [job for job in dict.fromkeys(jobs) if job not in there]
        own = {job: {"fixed_params": dict(values)} for job, values in (fixed or {}).items()}
        self.study.add_trials(
            [create_trial(state=TrialState.WAITING, user_attrs=asdict(job), system_attrs=own.get(job)) for job in new]
        )

    def claim(self, wanted: set[J]) -> Claim[J] | None:
        """Takes a waiting job; None if there is none of those wanted."""
        self.free_the_dead()
        trials = self.trials(OPEN)
        first = {self.kind.of(trial): trial.number for trial in reversed(trials)}
        for trial in trials:
            run = self.kind.of(trial)
            if trial.state is not TrialState.WAITING or run not in wanted:
                continue
            claim = Claim(run, self._id(trial), trial.number)
            # The first heartbeat comes before the claim. A process that is killed in between would else leave a
            # running trial without any heartbeat, which nobody takes for dead.
            self.beat(claim)
            with suppress(optuna.exceptions.UpdateFinishedTrialError):
                if not self.storage.set_trial_state_values(claim.trial, TrialState.RUNNING):
                    continue
                if trial.number == first[run]:
                    self._mine.add(claim.trial)
                    return claim
                self._end(claim.trial, TrialState.FAIL)
        return None

    def free_the_dead(self) -> None:
        """Frees the jobs whose owners are dead; to be called often, for it learns of them by looking.

        A look counts for the time since the one before, but for no more than a heartbeat: while this process slept, or
        its machine, the others' may have slept as well.
        """
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, self.heartbeat), now
        silent: dict[int, tuple[object, float]] = {}
        for trial, heartbeat in self._heartbeats():
            if trial in self._mine:
                continue
            last, seconds = self._silent.get(trial, (None, 0.0))
            silent[trial] = heartbeat, seconds + passed if last == heartbeat else 0.0
            if silent[trial][1] > self.grace:
                del silent[trial]
                with suppress(optuna.exceptions.UpdateFinishedTrialError):
                    if self.storage.set_trial_state_values(trial, TrialState.FAIL):
                        self._retry(self.study, copy.deepcopy(self.storage.get_trial(trial)))
        self._silent = silent

    def _heartbeats(self) -> list[tuple[int, object]]:
        """The running trials, each with its last heartbeat as the database has it."""
        with self.storage.engine.connect() as connection:
            found = connection.execute(_HEARTBEATS, {"name": self.name}).tuples().all()
        return [(trial, heartbeat) for trial, heartbeat in found]

    def _id(self, trial: FrozenTrial) -> int:
        """By which the storage knows a trial; Optuna's trials say their number in the study only."""
        study = self.storage.get_study_id_from_name(self.name)
        return self.storage.get_trial_id_from_study_id_trial_number(study, trial.number)

    def beat(self, claim: Claim[J]) -> None:
        """Says that a job's owner is alive."""
        self.storage.record_heartbeat(claim.trial)

    def report(self, trial: int, step: int, value: float) -> bool:
        """Records a trial's value at a step, and returns whether the study's pruner would end the trial there."""
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            self.storage.set_trial_intermediate_value(trial, step, value)
            return self.study.pruner.prune(self.study, self.storage.get_trial(trial))
        return False

    def finish(self, claim: Claim[J], values: Sequence[float], result: str) -> None:
        """Records a finished job, with a text about it for machines that lack its files."""
        self._end(claim.trial, TrialState.COMPLETE, list(values), result=result)

    def prune(self, claim: Claim[J], result: str) -> None:
        """Records a job that was stopped because it promised little; its last intermediate value counts."""
        self._end(claim.trial, TrialState.PRUNED, result=result)

    def fail(self, claim: Claim[J], reason: str) -> None:
        """Records in one line why a job has failed."""
        self._end(claim.trial, TrialState.FAIL, error=reason)

    def give_back(self, claim: Claim[J]) -> None:
        """Gives up a job that was begun, so that others, or this machine later, can take it."""
        self._end(claim.trial, TrialState.WAITING)

    def _end(self, trial: int, state: TrialState, values: list[float] | None = None, **notes: str) -> None:
        """Records an end; does nothing if others took this process for dead, for they do the job again then."""
        self._mine.discard(trial)
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            for key, note in notes.items():
                self.storage.set_trial_user_attr(trial, key, note)
            self.storage.set_trial_state_values(trial, state, values)


def complaint(error: BaseException) -> str:
    """A database's complaint in one line; optuna raises an error of its own, with the database's as its cause."""
    return hidden(one_line(error.__cause__ or error))[:300]


def hidden(url: str) -> str:
    """A text with *** in place of the passwords of its URLs."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", url)


def _lock_whole_transactions(engine: Any) -> None:
    """Lets SQLite lock the database when a transaction begins, not when it first writes.

    Else two processes may both read that a job is waiting, and both take it.
    """

    @event.listens_for(engine, "connect")
    def leave_transactions_to_us(connection: Any, _: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # connections made before this
