"""What a config's ``search`` says."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import optuna
from mmengine.registry import METRICS
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from ..errors import ConfigError, nearest
from ..jobs.study import Direction

COSTS = ("step_ms", "extra_parameters")
"""Objectives that are minimised: milliseconds of a training step, parameters that a fusion model adds."""

MEASURED = ("student", "fusion")
"""Models whose validation can be an objective: "student_top1", "fusion_knn"."""

SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("asha", "hyperband", "median")


def measured(config: Mapping[str, Any]) -> list[str]:
    """What a config's validation measures, in percent, the student's first metric first; it is maximised."""
    evaluator = config.get("val_evaluator") or ()
    metrics = evaluator if isinstance(evaluator, list | tuple) else [evaluator]
    kinds = [METRICS.module_dict.get(str(metric.get("type"))) for metric in metrics if isinstance(metric, Mapping)]
    keys = list(dict.fromkeys(kind.key for kind in kinds if hasattr(kind, "key"))) or ["top1"]
    return [f"{model}_{key}" for key in keys for model in MEASURED]


@dataclass(frozen=True)
class OneShot:
    """How a one-shot search ends; see :mod:`fbt_plugins.search.one_shot`.

    Args:
        best: how many splices get a finish.
        epochs: how long a finish trains.
        rate: learning rate that a finish starts with, as a share of the config's own.

    Raises:
        ConfigError: for what cannot be.
    """

    best: int = 3
    epochs: int = 3
    rate: float = 0.5

    def __post_init__(self) -> None:
        if type(self.best) is not int or type(self.epochs) is not int or min(self.best, self.epochs) < 1:
            raise ConfigError(f"search.one_shot: best={self.best!r}, epochs={self.epochs!r}: whole numbers from 1")
        if not isinstance(self.rate, int | float) or self.rate <= 0:
            raise ConfigError(f"search.one_shot: rate={self.rate!r}: a number above 0")


@dataclass(frozen=True)
class Settings:
    """A search.

    Attributes:
        space: what is chosen from, by dotted key of the config; see :class:`fbt_plugins.search.space.Space`.
        objectives: of what validation measures ("student_top1", "fusion_knn") and of ``COSTS``; with several the result
            is a Pareto front. None given: the student's first metric.
        sampler: "tpe", "random", or "grid" for every combination once.
        pruner: "asha", "hyperband" or "median", by the first objective after each validation; None lets all trials end.
        trials: how many at most; None for a grid is all of it.
        seed: seed of the sampler, and of every trial's training.
        one_shot: arguments of :class:`OneShot` for a one-shot search, which has neither sampler nor pruner.
    """

    space: Mapping[str, Any]
    objectives: Sequence[str] = ()
    sampler: str = "tpe"
    pruner: str | None = None
    trials: int | None = None
    seed: int = 0
    one_shot: OneShot | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Settings:
        """Reads a config.

        Raises:
            ConfigError: with a line for each thing that is wrong.
        """
        options = config.get("search")
        if not isinstance(options, Mapping) or not isinstance(options.get("space"), Mapping) or not options["space"]:
            raise ConfigError("it has no search=dict(space={...}): there is nothing to choose from")
        known = list(inspect.signature(cls).parameters)
        problems = [f"search: unknown argument {name!r}{nearest(name, known)}" for name in options if name not in known]
        figures = measured(config)
        settings = cls(**{"objectives": figures[:1]} | {name: options[name] for name in known if name in options})
        if (finish := options.get("one_shot")) is not None:
            names = list(inspect.signature(OneShot).parameters)
            given = [name for name in ("sampler", "pruner", "trials") if name in options]
            problems += [f"search.{name}: search.one_shot trains all splices in one run; drop it" for name in given]
            if not isinstance(finish, Mapping) or not finish.keys() <= set(names):
                problems.append(f"search.one_shot: a dict of {', '.join(names)}, not {finish!r}")
            if problems:
                raise ConfigError(problems)
            settings = replace(settings, one_shot=OneShot(**finish), sampler="grid")
        for name, value, allowed in (("sampler", settings.sampler, SAMPLERS), ("pruner", settings.pruner, PRUNERS)):
            if value not in allowed and not (name == "pruner" and value is None):
                problems.append(f"search.{name}: {value!r}{nearest(value, allowed)}")
        objectives = settings.objectives
        if isinstance(objectives, str) or not objectives or len(set(objectives)) < len(objectives):
            problems.append(f"search.objectives: a list of different names, not {objectives!r}")
        else:
            names = [*figures, *COSTS]
            problems += [f"search.objectives: {n!r}{nearest(n, names)}" for n in objectives if n not in names]
        if settings.pruner and (len(objectives) != 1 or objectives[0] in COSTS):
            problems.append("search.pruner: trials are pruned by one metric; take one objective, or pruner=None")
        if (settings.pruner or settings.one_shot) and not (config.get("train_cfg") or {}).get("by_epoch", True):
            which = "pruner" if settings.pruner else "one_shot"
            problems.append(f"search.{which}: it counts epochs, and this config trains by iterations")
        trials = settings.trials
        if (trials is None and settings.sampler != "grid") or not isinstance(trials, int | None) or trials == 0:
            problems.append(f"search.trials: a number of trials, not {trials!r}")
        if type(settings.seed) is not int:
            problems.append(f"search.seed: a whole number, not {settings.seed!r}")
        for split in ("val_dataloader", "val_evaluator"):
            if not config.get(split):
                problems.append(f"{split} is missing: splices are chosen by validation")
        if problems:
            raise ConfigError(problems)
        return settings

    @property
    def directions(self) -> list[Direction]:
        """Whether each objective is maximised or minimised."""
        return ["minimize" if name in COSTS else "maximize" for name in self.objectives]

    def make_sampler(self, number: int) -> BaseSampler:
        """The sampler of one trial.

        Its choice depends on the seed, the trial's number and the finished trials, not on the process that asks.
        """
        seed = (self.seed * 1_000_003 + number) % 2**32
        if self.sampler == "tpe":
            return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)
        return optuna.samplers.RandomSampler(seed=seed)

    def make_pruner(self, epochs: int) -> BasePruner:
        """Optuna's, for trainings of so many epochs."""
        if self.pruner == "asha":
            return optuna.pruners.SuccessiveHalvingPruner(min_resource=max(1, epochs // 9), reduction_factor=3)
        if self.pruner == "hyperband":
            return optuna.pruners.HyperbandPruner(min_resource=max(1, epochs // 9), max_resource=epochs)
        return optuna.pruners.MedianPruner() if self.pruner else optuna.pruners.NopPruner()
