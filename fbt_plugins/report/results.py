"""Finished runs as small JSON files: what a table needs, and what says how it came about."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import median
from typing import Any

from ..errors import FBTError


@dataclass(frozen=True)
class Trial:
    """One finished run of a matrix.

    Attributes:
        pair, method, seed: which run.
        about: the method in words.
        top1: of each model on the final split, in percent, by name ("student", "teacher", "fusion").
        split: the final split, "test" or "validation".
        images: per second in training, the median over the run; None where it is not known.
        curve: of each validation the epoch and the top-1 of each model.
        reference: the published figure and its source, or None.
        config: hash of the run's config, the same for all seeds.
        hardware: what it ran on, in words.
        about_run: best epoch, seconds, versions, git state.
        cka: how many images, and by pair of models ("teacher_student") a map with the names of its rows and columns;
            None where the run made none.
    """

    pair: str
    method: str
    seed: int
    about: str
    top1: Mapping[str, float]
    split: str
    images: float | None
    curve: list[dict[str, float]]
    reference: Mapping[str, Any] | None
    config: str
    hardware: str
    about_run: Mapping[str, Any]
    cka: Mapping[str, Any] | None = None

    @property
    def student(self) -> float:
        return self.top1["student"]

    @property
    def validated(self) -> float | None:
        """The student's best validation, in percent; None where there was none."""
        return max((record["student"] for record in self.curve), default=None)

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.pair}.{self.method}.seed_{self.seed}.json"

    def text(self) -> str:
        """The file's contents."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"


def trial_of_run(folder: str | Path, config: str, hardware: str) -> Trial:
    """A trial from the folder of a cell's finished run.

    Args:
        folder: with summary.json and metrics.jsonl.
        config: hash of the run's config.
        hardware: what it ran on, in words.

    Raises:
        FBTError: if the run is not finished, or is none of a matrix.
    """
    folder = Path(folder)
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    except (OSError, json.JSONDecodeError) as error:
        raise FBTError(f"{folder}: not the folder of a finished run ({error})") from error
    if not summary.get("cell"):
        raise FBTError(f"{folder}: a run of no matrix")
    rates = [record["train/images_per_second"] for record in records if "train/images_per_second" in record]
    kept = ("best_epoch", "seconds", "device", "world_size", "versions", "git")
    return Trial(
        pair=summary["cell"]["pair"],
        method=summary["cell"]["method"],
        seed=summary["seed"],
        about=summary["cell"]["about"],
        top1=_top1(summary, ""),
        split=summary["split"],
        images=round(median(rates), 1) if rates else None,
        curve=[{"epoch": r["epoch"], **_top1(r, "val/")} for r in records if "val/student_top1" in r],
        reference=summary.get("reference"),
        config=config,
        hardware=hardware,
        about_run={key: summary.get(key) for key in kept},
        cka=summary.get("cka"),
    )


def _top1(record: Mapping[str, Any], prefix: str) -> dict[str, float]:
    names = [k for k in record if k.startswith(prefix) and k.endswith("_top1") and "best" not in k]
    return {k.removeprefix(prefix).removesuffix("_top1"): round(record[k], 4) for k in names}


def read_trials(folder: str | Path) -> list[Trial]:
    """All trials of a folder, in the order of their names.

    Raises:
        FBTError: for a file that is no trial.
    """
    trials = []
    for path in sorted(Path(folder).glob("*.json")):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            trials.append(Trial(**{field.name: values[field.name] for field in fields(Trial) if field.name in values}))
        except (OSError, json.JSONDecodeError, TypeError, KeyError) as error:
            raise FBTError(f"{path}: not a trial ({type(error).__name__}: {error})") from error
    return trials


def best_of(trials: Sequence[Trial], method: str, about: str, by_seed: Mapping[int, Sequence[str]]) -> list[Trial]:
    """The runs that validation prefers, as runs of one method: what a search over those methods would have found.

    Args:
        trials: finished runs.
        method, about: the name of the choice, and in words.
        by_seed: the methods to choose from. A pair has only those seeds all of whose runs are finished and validated.
    """
    runs = {(trial.pair, trial.seed, trial.method): trial for trial in trials if trial.validated is not None}
    found = []
    for pair in dict.fromkeys(trial.pair for trial in trials):
        for seed, methods in by_seed.items():
            own = [runs.get((pair, seed, name)) for name in methods]
            if own and all(own):
                best = max((trial for trial in own if trial), key=lambda trial: trial.validated or 0.0)
                found.append(
                    replace(best, method=method, about=about, images=None, reference=None, config="", cka=None)
                )
    return found
