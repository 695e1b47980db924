"""From a command line's arguments to a run that is checked and can begin: the one way that all commands take."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook

from ..config.loading import Arguments, run_config
from ..console import say
from ..distill.distiller import Distiller
from ..errors import FBTError, Interrupted
from ..files import locked
from .check import check_config
from .loaders import open_splits
from .optim.schedules import unlike_training
from .processes import find_processes, leave_processes
from .runner import DistillRunner
from .teacher_run import TRAIN, missing_teacher


@dataclass(frozen=True)
class Plan:
    """A run that has been checked and can begin.

    Attributes:
        config: complete, with the run's folder.
        distiller: on the meta device (its shapes are right, its weights are nowhere).
    """

    config: Config
    distiller: Distiller

    @classmethod
    def of(
        cls,
        path: str | Path,
        options: Mapping[str, Any] | None = None,
        pair: str | None = None,
        method: str | None = None,
        arguments: Arguments | None = None,
    ) -> Plan:
        """Reads a config file and checks it, with all plugins loaded.

        Args:
            path, options, pair, method, arguments: as :func:`run_config` takes them.

        Raises:
            ConfigError: with all problems, one line each.
        """
        return cls.of_config(run_config(path, options, pair, method, arguments))

    @classmethod
    def of_config(cls, config: Config) -> Plan:
        """Checks a config that has been read.

        Raises:
            ConfigError: with all problems, one line each.
        """
        return cls(config, check_config(config))

    def lines(self) -> list[str]:
        """What would run: the missing teacher's training, and each model's stages."""
        lines = []
        if (teacher := missing_teacher(self.config)) is not None:
            lines.append(f"teacher {teacher.announcement(teacher.load(self.config))}")
        for role, model in self.distiller.models.items():
            stages = ", ".join(map(str, self.distiller.specs(role)))
            about = f"features {model.num_features}, classes {model.num_classes}"
            lines.append(f"{role} {model.name}: {stages}; {about}")
        lines += [f"{name}: {fusion.title}" for name, fusion in self.distiller.fusions.items()]
        lines += [f"splice {line}" for line in self.distiller.splices_in_words()]
        schedules = unlike_training(self.config.get("param_scheduler"), self.config.train_cfg)
        return lines + [f"rate    {line}" for line in schedules]

    def run(self, hooks: Sequence[Hook] = (), on_the_way: bool = False) -> None:
        """Trains; before that its teacher, where that is missing and the config says so.

        Args:
            hooks: that no config can name, in addition to the config's.
            on_the_way: whether another run waits for the teacher that this one makes.

        Raises:
            FBTError: for whatever stops a run.
        """
        teacher = missing_teacher(self.config)
        if teacher is not None and teacher.if_missing == TRAIN:
            if os.environ.get("RANK", "0") == "0":
                open_splits(self.config)  # before its teacher is trained
            plan = Plan.of_config(teacher.load(self.config))
            say(f"teacher {teacher.announcement(plan.config)}")
            try:
                plan.run(on_the_way=True)
            except Interrupted:
                raise
            except FBTError as error:
                raise FBTError(
                    "\n".join(f"teacher_run: {teacher.command}: {line}" for line in error.lines())
                ) from error
            gc.collect()  # its model and optimizer, which a GPU may need the room of
        with _making(self.config.get("publish"), self.config.launcher, on_the_way) as needed:
            if needed:
                runner = DistillRunner.from_cfg(self.config)
                for hook in hooks:
                    runner.register_hook(hook)
                runner.train()
        if not on_the_way:  # the run that waits for this one goes on with its processes
            leave_processes()


@contextmanager
def _making(target: str | None, launcher: str, on_the_way: bool) -> Iterator[bool]:
    """Holds the lock of a run that makes a teacher, so that no two of them make the same.

    Yields:
        Whether there is still something to do: not where another run has made it while this one waited.
    """
    find_processes(launcher)
    if target is None or (launcher != "none" and os.environ["RANK"] != "0"):
        yield True
        return
    path = Path(target)
    with locked(path.with_name(f".{path.stem}.lock"), f"teacher {target} is being made by another process", on_the_way):
        yield not (on_the_way and path.is_file())
