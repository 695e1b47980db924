"""One trial of a search, in a process of its own: a run that tells the study how it does, and may be stopped."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from mmengine.hooks import Hook

from ..config.loading import Arguments
from ..engine.plan import Plan
from ..engine.training_run import TrainingRun
from ..errors import Interrupted, run
from ..jobs.study import SharedStudy, Slot
from .settings import Settings

STORAGE = "FBT_SEARCH_STORAGE"
"""Environment variable with the database's URL, which may hold a password that no list of processes must show."""


PRUNED = 3
"""Exit code of a trial that promises less than others did."""


class Pruned(Interrupted):
    """A trial that promises less than others did."""

    def __init__(self, line: str) -> None:
        super().__init__(line, signal=0)
        self.exit_code = PRUNED


class PruningHook(Hook):
    """Reports each validation to the study, and ends the run where the pruner says so.

    Args:
        study: where the trial is.
        trial: by which the storage knows the trial.
        objective: the metric that is reported.
    """

    priority = "VERY_LOW"  # after the checkpoint

    def __init__(self, study: SharedStudy[Slot], trial: int, objective: str) -> None:
        self.study, self.trial, self.objective = study, trial, objective

    def after_val_epoch(self, runner: TrainingRun, metrics: dict[str, float] | None = None) -> None:
        value = (metrics or {}).get(self.objective)
        if value is None:
            return
        epoch = runner.epoch
        if self.study.report(self.trial, epoch, value) and epoch < runner.max_epochs:
            raise Pruned(f"pruned after epoch {epoch}: {self.objective} {value:.2f} %")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fbt_plugins.search.trial_process")
    for name in ("config", "study"):
        parser.add_argument(name)
    parser.add_argument("trial", type=int)
    args = parser.parse_args()
    plan = Plan.of(args.config, arguments=Arguments(resume="auto", work_dir=str(Path(args.config).parent)))
    settings = Settings.of(plan.config)
    study = SharedStudy(args.study, os.environ[STORAGE], Slot, settings.directions)
    study.study.pruner = settings.make_pruner(plan.config.train_cfg.get("max_epochs", 1))
    hooks = [PruningHook(study, args.trial, settings.objectives[0])] if len(settings.objectives) == 1 else []
    plan.run(hooks)


if __name__ == "__main__":
    run(main)
