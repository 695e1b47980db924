"""Processes that train: takes jobs from a study, runs each in a process and a folder of its own, looks after them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol

import torch
from optuna.trial import FrozenTrial, TrialState

from ..console import say
from ..engine.hooks.stop import Signals
from ..errors import FBTError
from .study import Claim, J, SharedStudy

_LIBC = ctypes.CDLL(None)
LOOK = 2.0
"""Seconds between two reads of the study, each of which reads all jobs; an own job that ends is read at once."""


class LiveTable(Protocol):
    """What a tool shows of its jobs."""

    def live(self) -> AbstractContextManager[None]:
        """Keeps it on the terminal."""

    def update(self) -> None:
        """Shows what has changed."""


@dataclass
class Process(Generic[J]):
    """A job's process."""

    claim: Claim[J]
    folder: Path
    popen: subprocess.Popen[bytes] | None
    """None where nothing is left to train."""
    gpu: str | None = None
    """What its CUDA_VISIBLE_DEVICES is; None where it has no GPU of its own."""


class Workers(ABC, Generic[J]):
    """The jobs of a study on this machine.

    Args:
        study: where jobs are taken from.
        wanted: those to be done.
        workers: processes at the same time.

    Attributes:
        running: the processes.
        failed: jobs that failed since this process began, each with its one line.
        elsewhere: how many are being done by others.
    """

    def __init__(self, study: SharedStudy[J], wanted: Sequence[J], workers: int = 1) -> None:
        self.study, self.wanted, self.workers = study, list(wanted), workers
        self.running: list[Process[J]] = []
        self.failed: dict[J, str] = {}
        self.elsewhere = 0
        self._beaten, self._looked = 0.0, -LOOK
        self._failed_before = {trial.number for trial in study.trials([TrialState.FAIL])}

    @abstractmethod
    def is_done(self, job: J) -> bool:
        """Whether nothing is left to do for it."""

    @abstractmethod
    def plan(self, claim: Claim[J]) -> tuple[Path, list[str] | None]:
        """A job's folder, and the command that does it; None where the folder already has what it would leave.

        Raises:
            FBTError: if it cannot be done.
        """

    @abstractmethod
    def finish(self, process: Process[J], code: int) -> None:
        """Records what a process has left behind.

        Raises:
            FBTError: if it has failed.
        """

    @abstractmethod
    def learn(self, trial: FrozenTrial) -> None:
        """Takes over what others have finished."""

    @property
    def left(self) -> list[J]:
        """Jobs that are neither done nor failed."""
        return [job for job in self.wanted if not self.is_done(job) and job not in self.failed]

    def step(self) -> bool:
        """Looks after the jobs once; False when there is nothing left to do or to wait for."""
        if time.monotonic() - self._beaten > self.study.heartbeat / 2:
            self._beaten = time.monotonic()
            for process in self.running:
                self.study.beat(process.claim)
        ended = [process for process in self.running if process.popen is None or process.popen.poll() is not None]
        for process in ended:
            self.running.remove(process)
            try:
                self.finish(process, process.popen.returncode if process.popen is not None else 0)
            except FBTError as error:
                self._fail(process.claim, error)
        if not ended and time.monotonic() - self._looked < LOOK:
            return bool(self.running or self.elsewhere)
        self._looked = time.monotonic()
        self.study.free_the_dead()
        self._read_what_others_did()
        open_jobs = {job for job in self.wanted if not self.is_done(job)}
        while len(self.running) < self.workers and (claim := self.study.claim(open_jobs)):
            try:
                folder, command = self.plan(claim)
            except FBTError as error:
                self._fail(claim, error)
                continue
            gpu = None if command is None else self._free_gpu()
            popen = None if command is None else self._begin(folder, command, gpu)
            self.running.append(Process(claim, folder, popen, gpu))
        return bool(self.running or self.elsewhere)

    def _fail(self, claim: Claim[J], error: FBTError) -> None:
        self.failed[claim.run] = str(error)
        self.study.fail(claim, str(error))

    def _read_what_others_did(self) -> None:
        """Takes what other machines have finished out of the study, and counts what they have taken."""
        wanted, mine = set(self.wanted), {process.claim.number for process in self.running}
        self.elsewhere = 0
        for trial in self.study.trials():
            job = self.study.kind.of(trial)
            if job not in wanted or self.is_done(job):
                continue
            if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
                self.learn(trial)
            elif trial.state is TrialState.RUNNING and trial.number not in mine:
                self.elsewhere += 1
            elif trial.state is TrialState.FAIL and self._is_new(trial) and "error" in trial.user_attrs:
                self.failed.setdefault(job, str(trial.user_attrs["error"]))

    def _is_new(self, trial: FrozenTrial) -> bool:
        """Whether a trial ended after this process began; jobs that failed earlier are tried again."""
        return trial.number not in self._failed_before

    def _begin(self, folder: Path, command: list[str], gpu: str | None) -> subprocess.Popen[bytes]:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "output.txt").open("wb") as output:
            return subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment(gpu),
                start_new_session=True,  # Ctrl-C is for this process, which passes it on once
                preexec_fn=die_with_parent,
            )

    def _free_gpu(self) -> str | None:
        """The GPU of those given that the fewest of this machine's processes are on; None where there is no choice."""
        given = gpus()
        if len(given) < 2:
            return None
        taken = [process.gpu for process in self.running]
        return min(given, key=taken.count)

    def _environment(self, gpu: str | None) -> dict[str, str]:
        """A process's environment: its GPU; or, on a CPU, its share of the cores."""
        environment = dict(os.environ)
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        elif not gpus() and self.workers > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.workers)))
        return environment

    def work(self, screen: LiveTable) -> int:
        """Looks after the jobs until nothing is left to do, or until a signal; its number, 0 for none.

        Args:
            screen: shows what has changed.
        """
        with Signals() as signals:
            with screen.live():
                while not signals.received and self.step():
                    screen.update()
                    time.sleep(0.2)
                screen.update()
            if signals.received:
                say("stopping: what runs saves what it has")
                self.stop()
        return signals.received

    def stop(self) -> None:
        """Lets all processes save what they have, and gives their jobs back."""
        for process in self.running:
            if process.popen is not None and process.popen.poll() is None:
                process.popen.send_signal(signal.SIGTERM)
        for process in self.running:
            if process.popen is not None:
                process.popen.wait()
            self.study.give_back(process.claim)
        self.running = []


def gpus() -> list[str]:
    """The GPUs that this process may use, each as CUDA_VISIBLE_DEVICES names it: a number or a UUID."""
    count = torch.cuda.device_count()
    if given := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return [name.strip() for name in given.split(",")][:count]  # CUDA ignores what follows one that is not there
    return [str(number) for number in range(count)]


def die_with_parent() -> None:
    """Runs in the child: it is told to save and stop when this process is killed, so that no run goes on unowned."""
    if sys.platform == "linux":
        _LIBC.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def last_line(output: Path, code: int) -> str:
    """The error line of a process that ended badly."""
    lines = [line.strip() for line in output.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    last = (errors or lines[-1:] or ["no output"])[-1]
    return f"{last} (exit code {code}; all of it is in {output})"
