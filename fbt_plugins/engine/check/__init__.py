"""Everything that is wrong with a config, found without data and without training."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mmengine.config import Config

from ...distill.distiller import Distiller
from ...errors import ConfigError, one_line
from ...models.weights import misfit
from ..hooks.teacher_cache import refusals
from ..teacher_run import TeacherRun, missing_teacher
from .data import data, mixing
from .findings import Findings
from .model import model
from .options import ema, machine, options, publish, start, top_level
from .training import hooks, loops, optimizer, steps

CHECKERS: tuple[Callable[[Findings], None], ...] = (
    *(top_level, data, loops, steps, optimizer, hooks, machine, mixing, start, options, ema, publish),
)
"""Each for a part of a config, in the order of their lines; the model, and what must fit it, comes last."""


def check_config(config: Config) -> Distiller:
    """Holds every key against what will be built from it, and builds the models without weights.

    Args:
        config: as :func:`load_config` gives it.

    Returns:
        The distiller on the meta device (its shapes are right, its weights are nowhere).

    Raises:
        ConfigError: with all problems, one line each.
    """
    findings = Findings(config)
    for checker in CHECKERS:
        try:
            checker(findings)
        except (TypeError, AttributeError, ValueError, KeyError) as error:  # something of quite another form
            findings.problems.append(f"config cannot be read: {one_line(error)}")
    run = None if "teacher_run" in findings.wrong_options else missing_teacher(findings.config)
    distiller = model(findings, without_checkpoint=run is not None)
    if run is not None:
        _teacher_run(findings, run, distiller)
    cache = findings.config.get("teacher_cache")
    if cache is not None and (not isinstance(cache, Mapping) or cache.get("required", True)):
        findings.problems += refusals(distiller, findings.config.get("data_preprocessor"))
    if lines := findings.lines():
        raise ConfigError(lines)
    assert distiller is not None  # else a line says why
    return distiller


def _teacher_run(findings: Findings, run: TeacherRun, distiller: Distiller | None) -> None:
    """The run that is to make a missing teacher, checked as well."""
    if (config := findings.collect("", run.load, findings.config)) is None:
        return
    if problem := run.refusal(findings.config):
        findings.problems.append(problem)
        return
    made = findings.collect("teacher_run", check_config, config)
    if made is not None and distiller is not None and distiller.teacher is not None:
        problem = misfit(distiller.teacher.net.state_dict(), made.student.net.state_dict())
        findings.problems += [f"teacher_run: what it makes does not fit model.teacher: {problem}"] if problem else []
