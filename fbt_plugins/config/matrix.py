"""Matrices: configs that hold many runs, one for each pair of models and each method."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from mmengine.config.config import DELETE_KEY

from ..errors import ConfigError, is_name, nearest, repeated
from .merging import IDENTITY, merge

KEYS = ("pairs", "methods", "seeds", "controls")


@dataclass(frozen=True)
class Matrix:
    """A config's tables: what differs from run to run only by pair or method.

    A run's config is the matrix's own, with the pair's overrides, then the method's, then those that the pair has for
    this method laid over it, each as a config is laid over its ``_base_``. What a config says
    outside of the tables is for all runs, also of a matrix that is its ``_base_``.

    Attributes:
        base: the config without the tables.
        pairs: by name ("teacher_student"), overrides, and besides: ``reference={method: dict(top1=..., source=...)}``,
            published figures; ``methods={method: overrides}``, what a method is told for this pair alone.
        methods: by name, overrides, and besides: ``about``, a line for readers; ``pairs``, a pattern or several of the
            pairs that it is for ("*_deit-t"; default: all); ``seeds``, instead of the matrix's; ``best_of={seed:
            [methods]}`` for a method without runs of its own: of each seed the run that validation prefers.
        seeds: of each cell's runs.
        controls: methods that all others are compared with, and in words; a step of the first one costs 1.
    """

    base: Mapping[str, Any]
    pairs: Mapping[str, Mapping[str, Any]]
    methods: Mapping[str, Mapping[str, Any]]
    seeds: Sequence[int]
    controls: Mapping[str, str]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Matrix | None:
        """A config's matrix; None if it has no such tables.

        Raises:
            ConfigError: for tables of another form.
        """
        if not any(key in config for key in KEYS):
            return None
        problems = []
        for key in ("pairs", "methods"):
            table = config.get(key)
            if not isinstance(table, Mapping) or not table or not all(isinstance(v, Mapping) for v in table.values()):
                problems.append(f"{key}: expected a dict of dicts by name, got {table!r}")
            elif wrong := [name for name in table if not is_name(name)]:
                problems.append(f"{key}: {wrong[0]!r} cannot be a folder's name, which each of them is")
        seeds = config.get("seeds", (0,))
        if not _are_seeds(seeds):
            problems.append(f"seeds: {_SEEDS}, got {seeds!r}")
        controls = config.get("controls", {})
        if not isinstance(controls, Mapping) or not all(isinstance(about, str) for about in controls.values()):
            problems.append(f"controls: expected a dict of words by method, got {controls!r}")
        elif not problems:
            known = config["methods"]
            problems += [f"controls: no method {name!r}{_near(name, known)}" for name in controls if name not in known]
            for method, overrides in known.items():
                problems += _problems_of(method, overrides, known)
        if problems:
            raise ConfigError(problems)
        base = {key: value for key, value in config.items() if key not in KEYS}
        return cls(base, config["pairs"], config["methods"], tuple(seeds), controls)

    def seeds_of(self, method: str) -> Sequence[int]:
        """The seeds of a method's runs."""
        return self.methods[method].get("seeds", self.seeds)

    @property
    def best_of(self) -> dict[str, Mapping[int, Sequence[str]]]:
        """For each method without runs of its own, by seed, the methods among which validation chooses."""
        return {name: method["best_of"] for name, method in self.methods.items() if "best_of" in method}

    def suits(self, pair: str, method: str) -> bool:
        """Whether a method is for a pair."""
        patterns = self.methods[method].get("pairs", "*")
        return any(fnmatchcase(pair, p) for p in ([patterns] if isinstance(patterns, str) else patterns))

    def cells(
        self, pairs: Collection[str] | None = None, methods: Collection[str] | None = None
    ) -> list[tuple[str, str]]:
        """All (pair, method) that have runs, pair by pair; or those of some pairs and methods.

        A method that is the best of others stands for these.

        Raises:
            ConfigError: for a name that is not there, or if no cell is left.
        """
        self._known(pairs or (), methods or ())
        cells = [
            (pair, method)
            for pair in self.pairs
            for method in self.methods
            if pair in (pairs or self.pairs) and method in self._behind(methods or self.methods, pair)
        ]
        if not cells:
            raise ConfigError(f"none of the methods {', '.join(methods or self.methods)} is for these pairs")
        return cells

    def _behind(self, methods: Collection[str], pair: str) -> set[str]:
        """The methods with runs that some methods need for a pair: themselves, or those among which they choose."""
        own = [name for name in methods if self.suits(pair, name)]
        chosen = {m for name in own for among in self.best_of.get(name, {}).values() for m in among}
        return {m for m in {*own, *chosen} - set(self.best_of) if self.suits(pair, m)}

    def cell(self, pair: str | None, method: str | None) -> dict[str, Any]:
        """The config of one cell, with its published figure as ``reference`` and its name as ``cell``.

        Raises:
            ConfigError: if the cell is not there, or its parts cannot be merged.
        """
        if pair is None or method is None:
            raise ConfigError(
                f"it is a matrix: say which run, with --pair (one of {', '.join(self.pairs)}) "
                f"and --method (one of {', '.join(self.methods)})"
            )
        self._known([pair], [method])
        if method in self.best_of:
            raise ConfigError(f"the method {method!r} is the best of others, and has no runs of its own")
        if not self.suits(pair, method):
            patterns = self.methods[method]["pairs"]
            raise ConfigError(f"the method {method!r} is for the pairs {patterns!r}, not for {pair!r}")
        of_pair, of_method = dict(self.pairs[pair]), dict(self.methods[method])
        reference = of_pair.pop("reference", {}).get(method)
        special = of_pair.pop("methods", {})
        about = of_method.pop("about", "")
        for key in ("pairs", "seeds"):
            of_method.pop(key, None)
        config = dict(self.base)
        for overrides in (of_pair, of_method, special.get(method, {})):
            config = merge(config, overrides)
        return {**config, "reference": reference, "cell": {"pair": pair, "method": method, "about": about}}

    def _known(self, pairs: Collection[str], methods: Collection[str]) -> None:
        problems = []
        for kind, names, known in (("pair", pairs, self.pairs), ("method", methods, self.methods)):
            problems += [f"no {kind} {name!r}{_near(name, known)}" for name in names if name not in known]
        if problems:
            raise ConfigError(problems)


def yielding(base: Mapping[str, Any], child: Mapping[str, Any]) -> Mapping[str, Any]:
    """A base config whose tables give way to a child: where both say a value, the child's is for all runs.

    A cell's overrides are laid over the rest of a config; without this a child of a matrix could not shorten its runs.

    Args:
        base: a config; it comes back as it is if it is no whole matrix.
        child: what is about to be laid over it. Its own tables still override what it says itself.
    """
    own = {key: value for key, value in child.items() if key not in KEYS}
    if not own or not all(isinstance(base.get(key), Mapping) for key in ("pairs", "methods")):
        return base
    methods = {name: _giving_way(overrides, own) for name, overrides in base["methods"].items()}
    pairs = {}
    for name, overrides in base["pairs"].items():
        pairs[name] = _giving_way(overrides, own)
        if special := overrides.get("methods"):
            pairs[name]["methods"] = {method: _giving_way(o, own) for method, o in special.items()}
    return {**base, "pairs": pairs, "methods": methods}


def _giving_way(overrides: Any, own: Mapping[str, Any]) -> Any:
    """Overrides with the values of ``own`` where both say one; what they switch off (None) stays off."""
    if not isinstance(overrides, Mapping):
        return overrides
    kept = dict(overrides)
    for key in kept.keys() & own.keys():
        theirs, value = kept[key], own[key]
        if not isinstance(value, Mapping):
            kept[key] = value
        elif isinstance(theirs, Mapping):
            changed = any(k in theirs and k in value and theirs[k] != value[k] for k in IDENTITY)
            kept[key] = value if changed or value.get(DELETE_KEY) else _giving_way(theirs, value)
    return kept


def _problems_of(method: str, overrides: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    seeds, by_seed = overrides.get("seeds", (0,)), overrides.get("best_of", {})
    problems = []
    if not _are_seeds(seeds):
        problems.append(f"methods.{method}.seeds: {_SEEDS}, got {seeds!r}")
    if not isinstance(by_seed, Mapping) or not all(
        type(k) is int and isinstance(v, list | tuple) for k, v in by_seed.items()
    ):
        return [*problems, f"methods.{method}.best_of: expected a dict of lists of methods by seed, got {by_seed!r}"]
    problems += [
        f"methods.{method}.best_of: {seed}: {name!r} is there twice"
        for seed, names in by_seed.items()
        for name in repeated(names)
    ]
    named = dict.fromkeys(name for names in by_seed.values() for name in names)
    return problems + [
        f"methods.{method}.best_of: no method {name!r} with runs{_near(name, known)}"
        for name in named
        if name not in known or "best_of" in known[name]
    ]


def is_seed(value: Any) -> bool:
    """Whether a run can have it: numpy takes whole numbers of 32 bits."""
    return type(value) is int and 0 <= value < 2**32


def _are_seeds(seeds: Any) -> bool:
    return isinstance(seeds, list | tuple) and bool(seeds) and all(map(is_seed, seeds)) and not repeated(seeds)


_SEEDS = "expected a list of different whole numbers from 0 to 2**32 - 1"


def _near(name: str, known: Collection[str]) -> str:
    return nearest(name, known, limit=40)
