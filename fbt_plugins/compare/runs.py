"""Runs a matrix: each run once, in a process of its own, and a line of what came out."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from optuna.trial import FrozenTrial

from ..config.matrix import is_seed
from ..console import say
from ..errors import ConfigError, FBTError
from ..files import append_line, is_finished
from ..jobs.study import Claim, Run, SharedStudy
from ..jobs.workers import Process, Workers, last_line
from ..report import Trial, read_trials, trial_of_run


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


class Runs(Workers[Run]):
    """The runs of a matrix on this machine.

    Args:
        study: where runs are taken from.
        wanted: those to be done.
        command: that trains, without pair, method, seed and folder.
        folder: of the runs' own folders.
        results: file of the finished runs, a line each; other processes may add to it.
        workers: processes at the same time.

    Attributes:
        done: finished runs, whoever has done them.

    Raises:
        ConfigError: if one of them has a seed that no run can have.
    """

    def __init__(
        self,
        study: SharedStudy[Run],
        wanted: list[Run],
        command: Sequence[str],
        folder: Path,
        results: Path,
        workers: int = 1,
    ) -> None:
        if wrong := [run.seed for run in wanted if not is_seed(run.seed)]:  # before they are in the study
            raise ConfigError(f"a seed is a whole number from 0 to 2**32 - 1, not {wrong[0]}")
        super().__init__(study, wanted, workers)
        self.command, self.folder, self.results = command, folder, results
        self.done: dict[Run, Trial] = {}
        self._hardware = hardware()
        for trial in read_trials(self.results, say):
            self._keep(trial)
        self.study.add(run for run in self.wanted if run not in self.done)

    def is_done(self, job: Run) -> bool:
        return job in self.done

    def _keep(self, trial: Trial) -> None:
        run = Run(trial.pair, trial.method, trial.seed, trial.config)
        self.done[run] = trial
        self.failed.pop(run, None)

    def _save(self, trial: Trial) -> None:
        append_line(self.results, trial.line())
        self._keep(trial)

    def learn(self, trial: FrozenTrial) -> None:
        run, line = Run.of(trial), trial.user_attrs.get("result")
        try:
            found = Trial.from_line(line if isinstance(line, str) else "")
        except (TypeError, ValueError) as error:
            raise FBTError(f"--storage: the result of {run} is no trial ({error})") from error
        self._save(self._checked(run, found, "--storage"))

    @staticmethod
    def _checked(run: Run, found: Trial, where: object) -> Trial:
        """A run's result, which must be that run's.

        Raises:
            FBTError: if it is another's.
        """
        if (other := Run(*found.run)) != run:
            raise FBTError(f"{where}: what should be the result of {run} is that of {other}")
        return found

    def folder_of(self, run: Run) -> Path:
        """Where a run of this machine is, and its ``output.txt``."""
        return self.folder / run.pair / run.method / f"seed_{run.seed}_{run.config[:8]}"

    def plan(self, claim: Claim[Run]) -> tuple[Path, list[str] | None]:
        run, folder = claim.run, self.folder_of(claim.run)
        if is_finished(folder):
            return folder, None
        arguments = ["--pair", run.pair, "--method", run.method, "--seed", str(run.seed)]
        arguments += ["--work-dir", str(folder), "--resume", "auto"]
        at = self.command.index("--cfg-options") if "--cfg-options" in self.command else len(self.command)
        return folder, [*self.command[:at], *arguments, *self.command[at:]]

    def finish(self, process: Process[Run], code: int) -> None:
        if code:
            raise FBTError(last_line(process.folder / "output.txt", code))
        trial = trial_of_run(process.folder, process.claim.run.config, self._hardware)
        self._checked(process.claim.run, trial, process.folder)
        self._save(trial)
        self.study.finish(process.claim, [trial.student], trial.line())

    def mean_seconds(self) -> float | None:
        """Mean time of a finished run; None before the first."""
        seconds = [s for run in self.wanted if run in self.done and (s := self.done[run].about_run.get("seconds"))]
        return sum(seconds) / len(seconds) if seconds else None
