"""Runs that make the teachers of other runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..config.loading import Arguments, load_config, run_config
from ..config.locating import typed_config
from ..console import relative
from ..errors import ConfigError, nearest, typed
from ..models.weights import EMBEDDED

TRAIN, REFUSE = "train", "refuse"


@dataclass(frozen=True)
class TeacherRun:
    """How a config's teacher is made: what it says as ``teacher_run``.

    Attributes:
        config: the teacher's own config, which says as ``publish`` where the teacher goes: to the student's
            ``model.teacher.checkpoint``.
        pair: which pair of it, where it is a matrix.
        method: which method of it, where it is a matrix.
        if_missing: what to do where that file is not there: "refuse", naming the command that makes it, or "train",
            which runs it first.
    """

    config: str
    pair: str | None = None
    method: str | None = None
    if_missing: str = REFUSE

    def __post_init__(self) -> None:
        if self.if_missing not in (TRAIN, REFUSE):
            near = nearest(self.if_missing, (TRAIN, REFUSE))
            raise ConfigError(f"teacher_run: if_missing cannot be {self.if_missing!r}{near}")

    @property
    def command(self) -> str:
        """What one types to run it."""
        cell = [word for key in ("pair", "method") if (v := getattr(self, key)) for word in (f"--{key}", v)]
        return typed("fbt train", typed_config(self.config), *cell)

    def refusal(self, student: Mapping[str, Any]) -> str:
        """Why a missing teacher is not made on the way; empty where it is.

        Args:
            student: the config whose teacher it makes.
        """
        file = student["model"]["teacher"]["checkpoint"]
        line = f"model.teacher: checkpoint {file!r}: no such file; '{self.command}'"
        if self.if_missing == REFUSE:
            return f"{line} makes it, as --cfg-options teacher_run.if_missing={TRAIN} does on the way"
        if student.get("launcher", "none") != "none":
            return f"{line} makes it: run that first, several processes do not make it on the way"
        return ""

    def announcement(self, teacher: Config) -> str:
        """What is done first, in words.

        Args:
            teacher: as :meth:`load` gives it.
        """
        return f"{teacher.publish} is missing: trained first, in {relative(teacher.work_dir)} ({self.command})"

    def load(self, student: Mapping[str, Any]) -> Config:
        """The teacher's config, ready to run: it goes on from where an earlier start of it stopped.

        Args:
            student: the config whose teacher it makes.

        Raises:
            ConfigError: if it cannot be read, or makes another file.
        """
        arguments = Arguments(resume="auto", device=student.get("device"), command=self.command)
        try:
            config = run_config(self.config, pair=self.pair, method=self.method, arguments=arguments)
        except ConfigError as error:
            raise ConfigError([f"teacher_run: {line}" for line in error.problems]) from error
        file, target = student["model"]["teacher"]["checkpoint"], config.get("publish")
        if target is None or Path(target) != Path(file):
            makes = f"makes {target!r}" if target else "makes no teacher (it has no publish)"
            raise ConfigError(f"model.teacher: checkpoint {file!r}: no such file, and '{self.command}' {makes}")
        if (config.model.get("teacher") or {}).get("checkpoint") == target:
            raise ConfigError(f"teacher_run: '{self.command}' needs the teacher that it makes, {target!r}")
        chain, other = {target}, config
        while (run := missing_teacher(other)) is not None:
            other = load_config(run.config, pair=run.pair, method=run.method)
            if (made := other.get("publish")) in chain:
                raise ConfigError(f"teacher_run: '{run.command}' needs what it makes, by way of others: {made!r}")
            chain.add(made)
        return config


def missing_teacher(config: Mapping[str, Any]) -> TeacherRun | None:
    """The run that makes a config's teacher, where the teacher's file is not there and the config says how to make it.

    Raises:
        ConfigError: if ``teacher_run`` says what cannot be.
    """
    options, model = config.get("teacher_run"), config.get("model")
    teacher = model.get("teacher") if isinstance(model, Mapping) else None
    file = teacher.get("checkpoint") if isinstance(teacher, Mapping) else None
    if not options or not isinstance(file, str) or file.startswith(EMBEDDED) or Path(file).expanduser().is_file():
        return None
    return TeacherRun(**options)
