"""What a search may choose from: values of a config by dotted key, and every splice that can be built."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Protocol

import optuna
from optuna.distributions import FloatDistribution, IntDistribution

from ..analysis.inspection import splice_rows
from ..distill.distiller import Distiller
from ..errors import ConfigError, FBTError, nearest, repeated
from ..registry.registries import FUSIONS

ALL = "all"
_RANGE, _FUSIONS = ("low", "high", "step", "log"), ("switches", "strategies")


class Parameter(Protocol):
    """One entry of a space."""

    def suggest(self, trial: optuna.Trial) -> Any:
        """A trial's value for the config."""
        ...

    def probes(self) -> list[Any]:
        """Values to check in the config before any trial: all of a choice, the ends of a range."""
        ...

    def grid(self) -> list[dict[str, Any]]:
        """All combinations of what Optuna calls parameters.

        Raises:
            ConfigError: if there are infinitely many.
        """
        ...


@dataclass(frozen=True)
class Choice:
    """One of several values, of any form that a config can hold."""

    key: str
    values: Sequence[Any]

    @property
    def labels(self) -> list[str | int | float | bool | None]:
        """The values as Optuna can store them: numbers, words and None as they are, all else as text."""
        return [v if isinstance(v, str | int | float | bool | None) else json.dumps(v) for v in self.values]

    def suggest(self, trial: optuna.Trial) -> Any:
        return self.values[self.labels.index(trial.suggest_categorical(self.key, self.labels))]

    def probes(self) -> list[Any]:
        return list(self.values)

    def grid(self) -> list[dict[str, Any]]:
        return [{self.key: label} for label in self.labels]


@dataclass(frozen=True)
class Range:
    """Numbers between two, both included: whole ones where both and the step are whole."""

    key: str
    low: float
    high: float
    step: float | None = None
    log: bool = False

    @property
    def distribution(self) -> IntDistribution | FloatDistribution:
        if all(type(v) is int for v in (self.low, self.high, 1 if self.step is None else self.step)):
            return IntDistribution(int(self.low), int(self.high), self.log, int(self.step or 1))
        return FloatDistribution(self.low, self.high, self.log, self.step)

    def suggest(self, trial: optuna.Trial) -> Any:
        numbers = self.distribution
        if isinstance(numbers, IntDistribution):
            return trial.suggest_int(self.key, numbers.low, numbers.high, step=numbers.step, log=numbers.log)
        return trial.suggest_float(self.key, numbers.low, numbers.high, step=numbers.step, log=numbers.log)

    def probes(self) -> list[Any]:
        return [self.low, self.high]

    def grid(self) -> list[dict[str, Any]]:
        if self.log or not (whole := self.step or isinstance(self.distribution, IntDistribution)):
            raise ConfigError(f"{self.key}: a grid has no end of values between {self.low} and {self.high}; set a step")
        step = self.step or float(whole)
        count = int((self.high - self.low) / step + 1e-9) + 1
        kind = int if isinstance(self.distribution, IntDistribution) else float
        return [{self.key: kind(self.low + i * step)} for i in range(count)]


@dataclass(frozen=True)
class Fusions:
    """A splice, and a strategy that can build it.

    Attributes:
        key: of the config.
        base: what the config says about its fusion; kept but for type, arguments and splice.
        strategies: config of each, by its label.
        fitting: by splice, the labels of the strategies that can build it; no splice is without one.
        auto: the splice that "auto" is with these models; "" where it is none of these.
    """

    key: str
    base: Mapping[str, Any]
    strategies: Mapping[str, Mapping[str, Any]]
    fitting: Mapping[str, Sequence[str]]
    auto: str = ""

    def marked(self, splice: str) -> str:
        """ "T1-3+S4 (auto)" where the splice is that, for people to read."""
        return f"{splice} (auto)" if splice == self.auto else splice

    def _projector(self, splice: str) -> str:
        """Name of the parameter that chooses a splice's strategy.

        Splices that have the usual strategies to choose from share one, the others have one each.
        """
        sets = list(map(tuple, self.fitting.values()))
        usual = max(sets, key=sets.count)
        return f"{self.key}.type" if tuple(self.fitting[splice]) == usual else f"{self.key}.type of {splice}"

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        splice = trial.suggest_categorical(f"{self.key}.splice", list(self.fitting))
        label = trial.suggest_categorical(self._projector(splice), list(self.fitting[splice]))
        return {**self.base, **self.strategies[label], "splice": splice}

    def probes(self) -> list[Any]:
        return []  # all of them were built when the space was made

    def grid(self) -> list[dict[str, Any]]:
        return [
            {f"{self.key}.splice": splice, self._projector(splice): label}
            for splice, labels in self.fitting.items()
            for label in labels
        ]


@dataclass(frozen=True)
class Space:
    """All parameters of a search.

    Attributes:
        parameters: by dotted key of the config.
    """

    parameters: Mapping[str, Parameter] = field(default_factory=dict)

    @classmethod
    def of(cls, space: Mapping[str, Any], distiller: Distiller, model: Mapping[str, Any]) -> Space:
        """Reads a config's ``search.space``.

        A list is a choice; ``dict(low, high, step, log)`` numbers; for "model.fusion", ``dict(switches=(1, 2),
        strategies="all")`` every splice with so many junctions and every registered strategy that can build it, or
        those whose configs ``strategies`` lists.

        Args:
            space: by dotted key.
            distiller: the config's own, of whose models splices are made.
            model: the config of it.

        Raises:
            ConfigError: with a line for each key that says something else.
        """
        parameters: dict[str, Parameter] = {}
        problems: list[str] = []
        for key, options in space.items():
            try:
                parameters[key] = _parameter(key, options, distiller, model)
            except ConfigError as error:
                problems += [f"search.space: {line}" for line in error.problems]
        if problems:
            raise ConfigError(problems)
        return cls(parameters)

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """A trial's values, by dotted key of the config; the same again where they were chosen already."""
        return {key: parameter.suggest(trial) for key, parameter in self.parameters.items()}

    def grid(self) -> list[dict[str, Any]]:
        """Every combination, each once.

        Raises:
            ConfigError: if there are infinitely many.
        """
        rows = product(*(parameter.grid() for parameter in self.parameters.values()))
        return [{name: value for part in row for name, value in part.items()} for row in rows]

    def lines(self) -> Iterator[str]:
        """What there is to choose from, for people to read."""
        for key, p in self.parameters.items():
            if isinstance(p, Fusions):
                yield f"{key}: {len(p.fitting)} splices, {sum(map(len, p.fitting.values()))} with their projectors"
                for splice, labels in p.fitting.items():
                    yield f"  {p.marked(splice)}: {', '.join(labels)}"
            elif isinstance(p, Range):
                yield f"{key}: {p.low} to {p.high}{f' by {p.step}' if p.step else ''}{', logarithmic' if p.log else ''}"
            elif isinstance(p, Choice):
                yield f"{key}: {', '.join(map(str, p.labels))}"


def _parameter(key: str, options: Any, distiller: Distiller, model: Mapping[str, Any]) -> Parameter:
    if isinstance(options, list | tuple):
        choice = Choice(key, list(options))
        if not choice.values or len(set(map(str, choice.labels))) < len(choice.values):
            raise ConfigError(f"{key}: a list of different values, not {options!r}")
        return choice
    if not isinstance(options, Mapping):
        raise ConfigError(f"{key}: a list of values, dict(low=..., high=...), or for model.fusion dict(switches=(1,))")
    if {"low", "high"} & options.keys():
        _known(key, options, _RANGE)
        try:
            numbers = Range(key, **options)
            numbers.distribution.single()
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{key}: {error}") from error
        return numbers
    if not key.startswith("model.fusion"):
        raise ConfigError(f"{key}: dict(low=..., high=...) for numbers, a list for a choice, not {options!r}")
    _known(key, options, _FUSIONS)
    return _fusions(key, options, distiller, model)


def _known(key: str, options: Mapping[str, Any], known: Sequence[str]) -> None:
    if wrong := [name for name in options if name not in known]:
        raise ConfigError(f"{key}: unknown argument {wrong[0]!r}{nearest(wrong[0], known)}")


def _fusions(key: str, options: Mapping[str, Any], distiller: Distiller, model: Mapping[str, Any]) -> Fusions:
    if distiller.teacher is None:
        raise ConfigError(f"{key}: splices need a teacher")
    own = model.get("fusion") or {}
    for name in key.split(".")[2:]:
        own = own.get(name) or {}
    base = {name: own[name] for name in ("tail",) if name in own}
    given = options.get("strategies", ALL)
    configs = [{"type": name} for name in sorted(FUSIONS.module_dict)] if given == ALL else list(given)
    if twice := repeated(map(_label, configs)):
        raise ConfigError(f"{key}.strategies: {twice[0]} is there twice")
    fitting: dict[str, list[str]] = {}
    strategies: dict[str, Mapping[str, Any]] = {}
    auto = ""
    for config in configs:
        try:
            strategy = FUSIONS.build(config)
        except FBTError as error:
            if given == ALL:  # it needs arguments that only a user can give
                continue
            raise ConfigError(f"{key}.strategies: {error}") from error
        label = _label(config)
        strategies[label] = config
        switches = options.get("switches", (1,))
        switches = (switches,) if isinstance(switches, int) else switches
        if not all(isinstance(n, int) and n >= 1 for n in switches) or repeated(switches):
            raise ConfigError(f"{key}.switches: different whole numbers from 1, not {switches!r}")
        rows = splice_rows(distiller.student, distiller.teacher, strategy, distiller.image_size, switches)
        for row in rows:
            if not row["refused"]:
                fitting.setdefault(row["splice"], []).append(label)
                auto = row["splice"] if row["auto"] else auto
    if not fitting:
        raise ConfigError(f"{key}: none of {', '.join(map(_label, configs))} can build a splice of these two models")
    return Fusions(key, base, strategies, fitting, auto)


def _label(config: Mapping[str, Any]) -> str:
    """ "L2GFusion(head_dim=16)"."""
    rest = ", ".join(f"{name}={value}" for name, value in config.items() if name != "type")
    return f"{config['type']}({rest})" if rest else str(config["type"])
