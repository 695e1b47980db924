"""Everything that is wrong with a config, found without data and without training."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from mmengine.config import Config

from ...distill.distiller import Distiller
from ...errors import ConfigError, by_name, one_line
from ...models.weights import misfit
from ..hooks.teacher_cache import refusals
from ..teacher_run import TeacherRun, missing_teacher
from .data import data, mixing
from .findings import Findings
from .model import model, parts
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
    _hold(findings)
    run = _missing_teacher(findings.wrong_options, findings)
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


def check_cells(configs: Mapping[str, Config]) -> None:
    """Checks many configs in little time: as :func:`check_config`, but no whole model is built, so no shapes are known.

    Args:
        configs: by name, "pair/method".

    Raises:
        ConfigError: with all problems, one line each, and which configs have it.
    """
    found: dict[str, list[str]] = {}
    held: dict[str, Findings] = {}  # by all that a config says beside the model: cells differ by little
    built: dict[str, list[str]] = {}
    for name, config in configs.items():
        findings = Findings(config)
        key = repr({k: v for k, v in findings.config.items() if k not in ("model", "cell")})
        if key not in held:
            _hold(held.setdefault(key, Findings(config)))
        findings.problems += held[key].problems
        run = _missing_teacher(held[key].wrong_options, findings)
        if run is not None and (refusal := run.refusal(findings.config)):
            findings.problems.append(refusal)
        parts(findings, run is not None, built)
        found[name] = findings.lines()
    if lines := by_name(found):
        raise ConfigError(lines)


def _hold(findings: Findings) -> None:
    """Holds every key but the model's against what will be built."""
    for checker in CHECKERS:
        try:
            checker(findings)
        except (TypeError, AttributeError, ValueError, KeyError) as error:  # something of quite another form
            findings.problems.append(f"config cannot be read: {one_line(error)}")


def _missing_teacher(wrong_options: Collection[str], findings: Findings) -> TeacherRun | None:
    """The run that is to make a missing teacher."""
    return None if "teacher_run" in wrong_options else missing_teacher(findings.config)


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
