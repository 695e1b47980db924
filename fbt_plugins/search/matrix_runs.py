"""Runs a matrix: takes runs from a study, trains each in a process of its own, and keeps what came out."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from optuna.trial import FrozenTrial, TrialState

from ..engine.files import write_atomic
from ..errors import FBTError
from ..report import Trial, read_trials, trial_of_run
from .study import Claim, MatrixStudy, Run

_LIBC = ctypes.CDLL(None)
_NOT_RESULTS = (
    *("work_dir", "launcher", "resume", "device", "randomness", "reference", "cell", "cka"),
    *("teacher_run", "publish"),
)


def config_hash(config: Mapping[str, Any]) -> str:
    """Of everything in a run's config that its result may depend on, but the seed; not of where the data lie."""
    values = {key: value for key, value in config.items() if key not in _NOT_RESULTS}
    for key in ("train_dataloader", "val_dataloader", "test_dataloader"):
        if loader := values.get(key):
            values[key] = {**loader, "dataset": {k: v for k, v in loader["dataset"].items() if k != "root"}}
    others = {key: value for key, value in (config.get("randomness") or {}).items() if key != "seed"}
    text = json.dumps({**values, "randomness": others}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hardware() -> str:
    """What this machine is, in words."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name(0)}, {name}"
    threads = os.environ.get("OMP_NUM_THREADS")
    return f"{name}, {os.cpu_count()} cores" + (f", {threads} threads per run" if threads else "")


@dataclass
class Process:
    """A run's process."""

    claim: Claim
    folder: Path
    popen: subprocess.Popen[bytes] | None
    """None where the folder already has a finished run."""


@dataclass
class Runs:
    """The runs of a matrix on this machine.

    Attributes:
        study: where runs are taken from.
        wanted: those to be done.
        command: that trains, without pair, method, seed and folder.
        folder: of the runs' own folders.
        results: folder of the finished runs' trial files.
        workers: processes at the same time.
    """

    study: MatrixStudy
    wanted: list[Run]
    command: Sequence[str]
    folder: Path
    results: Path
    workers: int = 1
    running: list[Process] = field(default_factory=list)
    _hardware: str = field(default_factory=hardware)
    _beaten: float = 0.0

    def __post_init__(self) -> None:
        self.done: dict[Run, Trial] = {}
        self.failed: dict[Run, str] = {}
        """Runs that failed since this process began, each with its one line."""
        self.elsewhere = 0
        self._start = time.time()
        for trial in read_trials(self.results):
            self._keep(trial)
        self.study.add(run for run in self.wanted if run not in self.done)

    def _keep(self, trial: Trial) -> None:
        run = Run(trial.pair, trial.method, trial.seed, trial.config)
        self.done[run] = trial
        self.failed.pop(run, None)

    @property
    def left(self) -> list[Run]:
        """Runs that are neither done nor failed."""
        return [run for run in self.wanted if run not in self.done and run not in self.failed]

    def step(self) -> bool:
        """Looks after the runs once; False when there is nothing left to do or to wait for."""
        if time.monotonic() - self._beaten > self.study.heartbeat / 2:
            self._beaten = time.monotonic()
            for process in self.running:
                self.study.beat(process.claim)
        for process in list(self.running):
            if process.popen is None or process.popen.poll() is not None:
                self._end(process)
        self._read_what_others_did()
        open_runs = set(self.wanted) - self.done.keys()
        while len(self.running) < self.workers and (claim := self.study.claim(open_runs)):
            self._begin(claim)
        return bool(self.running or self.elsewhere)

    def _read_what_others_did(self) -> None:
        """Takes finished runs of other machines out of the study, and counts those that they have taken."""
        wanted, mine = set(self.wanted), {process.claim.trial for process in self.running}
        self.elsewhere = 0
        for trial in self.study.trials():
            run = Run.of(trial)
            if run not in wanted or run in self.done:
                continue
            if trial.state is TrialState.COMPLETE:
                self._save(Trial(**json.loads(trial.user_attrs["result"])))
            elif trial.state is TrialState.RUNNING and trial._trial_id not in mine:
                self.elsewhere += 1
            elif trial.state is TrialState.FAIL and self._is_new(trial) and "error" in trial.user_attrs:
                self.failed.setdefault(run, trial.user_attrs["error"])

    def _is_new(self, trial: FrozenTrial) -> bool:
        """Whether a trial ended after this process began: what failed before it is tried again."""
        return trial.datetime_complete is not None and trial.datetime_complete.timestamp() >= self._start

    def _begin(self, claim: Claim) -> None:
        run = claim.run
        folder = self.folder / run.pair / run.method / f"seed_{run.seed}_{run.config[:8]}"
        folder.mkdir(parents=True, exist_ok=True)
        popen = None
        if not (folder / "summary.json").is_file():
            arguments = ["--pair", run.pair, "--method", run.method, "--seed", str(run.seed)]
            arguments += ["--work-dir", str(folder), "--resume", "auto"]
            at = self.command.index("--cfg-options") if "--cfg-options" in self.command else len(self.command)
            command = [*self.command[:at], *arguments, *self.command[at:]]
            with (folder / "output.txt").open("wb") as output:
                popen = subprocess.Popen(
                    command,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=self._environment(),
                    start_new_session=True,  # Ctrl-C is for this process, which passes it on once
                    preexec_fn=_die_with_parent if sys.platform == "linux" else None,
                )
        self.running.append(Process(claim, folder, popen))

    def _environment(self) -> dict[str, str]:
        """Where there are several GPUs, workers take turns; a CPU's cores are shared out."""
        environment = dict(os.environ)
        if (count := torch.cuda.device_count()) > 1:
            environment["CUDA_VISIBLE_DEVICES"] = str(len(self.running) % count)
        elif not count and self.workers > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.workers)))
        return environment

    def _end(self, process: Process) -> None:
        self.running.remove(process)
        code = process.popen.returncode if process.popen is not None else 0
        try:
            if code:
                raise FBTError(_last_line(process.folder / "output.txt", code))
            trial = trial_of_run(process.folder, process.claim.run.config, self._hardware)
        except FBTError as error:
            self.failed[process.claim.run] = str(error)
            self.study.fail(process.claim, str(error))
            return
        self._save(trial)
        self.study.finish(process.claim, trial.student, trial.text())

    def _save(self, trial: Trial) -> None:
        write_atomic(self.results / trial.name, trial.text())
        self._keep(trial)

    def stop(self) -> None:
        """Lets all runs save what they have, and gives them back."""
        for process in self.running:
            if process.popen is not None and process.popen.poll() is None:
                process.popen.send_signal(signal.SIGTERM)
        for process in self.running:
            if process.popen is not None:
                process.popen.wait()
            self.study.give_back(process.claim)
        self.running = []

    def mean_seconds(self) -> float | None:
        """Of a finished run."""
        seconds = [s for run in self.wanted if run in self.done and (s := self.done[run].about_run.get("seconds"))]
        return sum(seconds) / len(seconds) if seconds else None


def _die_with_parent() -> None:
    """Runs in the child: it is told to save and stop when this process is killed, so that no run goes on unowned."""
    _LIBC.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _last_line(output: Path, code: int) -> str:
    """The error line of a run that ended badly."""
    lines = [line.strip() for line in output.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    last = (errors or lines[-1:] or ["no output"])[-1]
    return f"{last} (exit code {code}; all of it is in {output})"
