"""A search: its trials, each a splice and its settings, which a sampler chooses when a worker is free."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import optuna
from mmengine.config import Config
from optuna.trial import FrozenTrial

from ..config.hashing import config_hash
from ..config.merging import merge_options
from ..config.options import as_file
from ..distill.build import named_fusions
from ..distill.distiller import Distiller
from ..engine.check import check_config
from ..errors import ConfigError, FBTError, is_number, one_line, short
from ..files import is_finished, read_summary, write_atomic
from ..jobs.study import Claim, SharedStudy, Slot
from ..jobs.workers import Process, Workers, last_line
from .settings import MEASURED, Settings
from .space import Space
from .trial_process import PRUNED, STORAGE

NO_TEST: dict[str, Any] = dict.fromkeys(("test_dataloader", "test_evaluator", "test_cfg"))


@dataclass(frozen=True)
class Tried:
    """A trial that has ended.

    Attributes:
        number: from 0.
        options: what it was given, by dotted key of the config.
        state: "complete" or "pruned".
        figures: by the names of objectives; of one that was pruned what is known.
        epoch: after which it was pruned; None where it ended by itself.
        seconds: that its training took.
        folder: of its run.
    """

    number: int
    options: Mapping[str, Any]
    state: str
    figures: Mapping[str, float]
    epoch: int | None
    seconds: float | None
    folder: str

    @classmethod
    def of(cls, trial: FrozenTrial) -> Tried:
        """From the study.

        Raises:
            FBTError: if its result is something else.
        """
        try:
            found = cls(**json.loads(trial.user_attrs["result"]))
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise FBTError(f"--storage: the result of trial {trial.number} is none ({one_line(error)})") from error
        figures = found.figures.values() if isinstance(found.figures, Mapping) else [None]
        if not all(map(is_number, figures)) or found.state not in ("complete", "pruned"):
            raise FBTError(f"--storage: the result of trial {trial.number} is none: {short(found.figures)}")
        if type(found.number) is not int or not isinstance(found.options, Mapping) or not isinstance(found.folder, str):
            raise FBTError(f"--storage: the result of trial {trial.number} is none: {short(found.options)}")
        return found

    def text(self) -> str:
        """For the study."""
        return json.dumps(asdict(self))


class Search(Workers[Slot]):
    """The trials of a search on this machine.

    Args:
        study: where they are.
        config: of the runs, complete, with a ``search``.
        space: what it chooses from (:func:`space_of`).
        folder: of the trials' own folders.
        workers: processes at the same time.

    Attributes:
        tried: trials that have ended, whoever has run them.
        whole: config of what comes of the best trial.
    """

    def __init__(self, study: SharedStudy[Slot], config: Config, space: Space, folder: Path, workers: int = 1) -> None:
        self.config = self.whole = config
        self.settings = Settings.of(config)
        self.space, self.folder = space, folder
        self.tried: dict[Slot, Tried] = {}
        size, fixed = self.settings.trials or 0, {}
        if self.settings.sampler == "grid":
            grid = self.space.grid()[: self.settings.trials]
            size, fixed = len(grid), {Slot(i): row for i, row in enumerate(grid)}
        super().__init__(study, [Slot(i) for i in range(size)], workers)
        self._hashes: dict[str, str] = {}
        self._planned: dict[Slot, tuple[Mapping[str, Any], int]] = {}
        self.study.add(self.wanted, fixed)

    def is_done(self, job: Slot) -> bool:
        return job in self.tried

    def learn(self, trial: FrozenTrial) -> None:
        found = Tried.of(trial)
        if unknown := sorted(found.options.keys() - self.space.parameters.keys()):
            raise FBTError(f"--storage: trial {trial.number} tried {unknown[0]!r}, which search.space does not have")
        missing = [name for name in self.settings.objectives if name not in found.figures]
        if missing and found.state == "complete":
            raise FBTError(f"--storage: the result of trial {trial.number} has no {missing[0]}")
        self.tried[Slot.of(trial)] = found

    def plan(self, claim: Claim[Slot]) -> tuple[Path, list[str] | None]:
        self.study.study.sampler = self.settings.make_sampler(claim.run.number)
        trial = optuna.Trial(self.study.study, claim.trial)
        options = self.space.suggest(trial)
        folder = self.folder / f"{claim.run.number:04d}"
        config = self.config_of(options, folder)
        self._planned[claim.run] = options, _extra_parameters(check_config(config))
        if (same := self._same(options)) is not None:
            return same, None
        if is_finished(folder):
            return folder, None
        write_atomic(folder / "trial.py", as_file(config, keep=("work_dir", "device")))
        return folder, [
            *(sys.executable, "-m", "fbt_plugins.search.trial_process"),
            *(str(folder / "trial.py"), self.study.study.study_name, str(claim.trial)),
        ]

    def _same(self, options: Mapping[str, Any]) -> Path | None:
        """The folder of a finished trial with the same config, which a run of the same seed would only repeat."""
        mine = config_hash(self.config_of(options))
        complete = (tried for tried in self.tried.values() if tried.state == "complete")
        for tried in sorted(complete, key=lambda tried: tried.number):
            if tried.folder not in self._hashes:
                self._hashes[tried.folder] = config_hash(self.config_of(tried.options))
            if self._hashes[tried.folder] == mine and is_finished(tried.folder):
                return Path(tried.folder)
        return None

    def config_of(self, options: Mapping[str, Any], folder: Path | None = None, test: bool = False) -> Config:
        """A trial's config.

        Args:
            options: what it was given.
            folder: of its run.
            test: whether it has the test split; a search never looks at it.
        """
        contents = without_unused(merge_options((self.whole if test else self.config).to_dict(), options))
        if test:
            contents.pop("search")
        else:
            contents |= NO_TEST
        contents["randomness"] = {**contents["randomness"], "seed": self.settings.seed}
        if folder is not None:
            contents["work_dir"] = str(folder)
        return Config(contents)

    def _environment(self, gpu: str | None) -> dict[str, str]:
        return super()._environment(gpu) | {STORAGE: self.study.url}

    def finish(self, process: Process[Slot], code: int) -> None:
        slot, folder = process.claim.run, process.folder
        options, extra = self._planned[slot]
        figures: dict[str, float] = {"extra_parameters": extra}
        if code == PRUNED:
            reported = self.study.trial(process.claim).intermediate_values
            epoch = max(reported, default=0)
            figures |= {self.settings.objectives[0]: reported[epoch]} if reported else {}
            self.tried[slot] = Tried(slot.number, options, "pruned", figures, epoch, None, str(folder))
            self.study.prune(process.claim, self.tried[slot].text())
            return
        if code:
            raise FBTError(last_line(folder / "output.txt", code))
        found, seconds = _figures(folder, self.config.train_dataloader["batch_size"])
        figures |= found
        try:
            values = [figures[name] for name in self.settings.objectives]
        except KeyError as error:
            raise FBTError(
                f"search.objectives: {error.args[0]!r}: this run has none (it has no fusion model)"
            ) from error
        self.tried[slot] = Tried(slot.number, options, "complete", figures, None, seconds, str(folder))
        self.study.finish(process.claim, values, self.tried[slot].text())

    def about(self) -> dict[str, Any]:
        """What ``search.json`` says besides its trials."""
        return {}

    def lines(self) -> list[str]:
        """The same as Markdown."""
        return []

    def best(self) -> list[Tried]:
        """The best trial; with several objectives the Pareto front, by the first of them."""
        complete = [tried for tried in self.tried.values() if tried.state == "complete"]
        names = self.settings.objectives
        sign = [1 if direction == "maximize" else -1 for direction in self.settings.directions]

        def score(tried: Tried) -> list[float]:
            return [s * tried.figures[name] for s, name in zip(sign, names, strict=True)]

        def beaten(tried: Tried) -> bool:
            mine = score(tried)
            theirs = [score(other) for other in complete]
            return any(all(b >= a for a, b in zip(mine, other, strict=True)) and other != mine for other in theirs)

        front = sorted((t for t in complete if not beaten(t)), key=lambda t: (score(t), -t.number), reverse=True)
        return front[:1] if len(names) == 1 else front


def space_of(config: Config) -> Space:
    """What a config's search may choose from.

    Raises:
        ConfigError: for what is wrong in the config.
    """
    settings = Settings.of(config)
    contents = {**config.to_dict(), "work_dir": config.get("work_dir") or "work_dirs"}
    distiller = check_config(Config(contents))
    space = Space.of(settings.space, distiller, contents["model"])
    problems = []
    for key, parameter in space.parameters.items():
        for value in parameter.probes():
            try:
                check_config(Config(without_unused(merge_options(contents, {key: value}))))
            except ConfigError as error:
                problems += [f"search.space: {key}={value!r}: {line}" for line in error.problems]
    if problems:
        raise ConfigError(problems)
    return space


def without_unused(contents: dict[str, Any]) -> dict[str, Any]:
    """A config without the fusion models that none of its edges mentions, which is how a search leaves them out."""
    model = contents["model"]
    names = [edge if isinstance(edge, str) else edge.get("name", "") for edge in model.get("edges") or ()]
    ends = {end for name in names for end in name.split("_to_")}
    fusions = named_fusions(model.get("fusion"))
    used = {name: config for name, config in fusions.items() if name in ends}
    return contents if used == fusions else {**contents, "model": {**model, "fusion": used or None}}


def _extra_parameters(distiller: Distiller) -> int:
    """Trained parameters that fusion models add to teacher and student."""
    return sum(p.numel() for fusion in distiller.fusions.values() for p in fusion.parameters())


def _figures(folder: Path, batch_size: int) -> tuple[dict[str, float], float]:
    """What a finished run's folder says: what it measured and the milliseconds of a step; and its seconds.

    Raises:
        FBTError: if it is none.
    """
    try:
        summary = read_summary(folder)
        keys = [summary.get("measure", "top1"), *summary.get("also_measured", ())]
        names = [f"{model}_{key}" for key in keys for model in MEASURED]
        figures = {name: round(summary[name], 4) for name in names if name in summary}
        records = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        rates = [record["train/images_per_second"] for record in records if "train/images_per_second" in record]
        if rates:
            figures["step_ms"] = round(1000 * batch_size / median(rates), 3)
        return figures, float(summary["seconds"])
    except (FBTError, OSError, ValueError, TypeError, KeyError, ZeroDivisionError, RecursionError) as error:
        raise FBTError(f"{folder}: not the folder of a finished run ({one_line(error)})") from error
