"""Finished runs, a line each of a ``trials.jsonl``: what a table needs, and what says how it came about."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from statistics import median
from typing import Any

from ..errors import FBTError, is_name, is_number, one_line, short

TRIALS = "trials.jsonl"
"""Name of a study's file of finished runs."""


TITLES = {"top1": "top-1", "knn": "k-NN", "probe": "linear probe", "retrieval": "retrieval agreement"}
"""What people call what a run measures, by the word that its figures' names end in; others are called by that."""


@dataclass(frozen=True)
class Trial:
    """One finished run of a matrix.

    Attributes:
        pair, method, seed: which run.
        about: the method in words.
        top1: of each model on the final split, in percent, by name ("student", "teacher", "fusion"); where the run
            measured something else, that (see ``measure``).
        split: the final split, "test" or "validation".
        images: per second in training, the median over the run; None where it is not known.
        curve: of each validation the epoch and the top-1 of each model.
        reference: the published figure and its source, or None.
        config: hash of the run's config, the same for all seeds.
        hardware: what it ran on, in words.
        about_run: best epoch, seconds, versions, git state.
        cka: how many images, and by pair of models ("teacher_student") a map with the names of its rows and columns;
            None where the run made none.
        splices: of each fusion model, by owner ("T1-3+S4"), whatever way the config writes them; None where the run did
            not say it.
        measure: what the figures are, one of ``TITLES`` or another word; "top1" where the run did not say it.
        also: what else the run measured on the final split, by measure, each as ``top1``.
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
    splices: Mapping[str, Sequence[str]] | None = None
    measure: str = "top1"
    also: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def student(self) -> float:
        return self.top1["student"]

    @property
    def validated(self) -> float | None:
        """The student's best validation, in percent; None where there was none."""
        return max((record["student"] for record in self.curve), default=None)

    @property
    def name(self) -> str:
        """Which run it is, in words."""
        return f"{self.pair}/{self.method}/seed {self.seed}"

    @property
    def run(self) -> tuple[str, str, int, str]:
        """Which run it is: pair, method, seed, hash of the config."""
        return self.pair, self.method, self.seed, self.config

    def by(self, measure: str) -> Trial | None:
        """The run with the figures of another of its measures; None where it has not that one.

        What speaks of the run and not of its figures (time, maps, published figures) stays behind.
        """
        if measure not in self.also:
            return None
        return replace(
            self, top1=self.also[measure], measure=measure, also={}, images=None, curve=[], reference=None, cka=None
        )

    def line(self) -> str:
        """The run as one line of JSON, fields in the order above, without the line's end."""
        values = asdict(self)
        if self.splices is None:  # a line of before stays what it is
            del values["splices"]
        if self.measure == "top1":
            del values["measure"]
        if not self.also:
            del values["also"]
        return json.dumps(values, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_line(cls, line: str) -> Trial:
        """The run that a line tells.

        Raises:
            ValueError: if the line is not JSON.
            TypeError: if it is JSON, but no trial.
        """
        try:
            values = json.loads(line)
            json.dumps(values, ensure_ascii=False).encode()  # half a letter can be written as an escape
        except RecursionError as error:
            raise TypeError("nested too deeply") from error
        if not isinstance(values, dict):
            raise TypeError("not an object")
        if problem := problem_of(values):
            raise TypeError(problem)
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})


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
    except (OSError, ValueError, RecursionError) as error:
        raise FBTError(f"{folder}: not the folder of a finished run ({one_line(error)})") from error
    if not isinstance(summary, dict) or not all(isinstance(record, dict) for record in records):
        raise FBTError(f"{folder}: not the folder of a finished run (its summary.json and metrics.jsonl are others')")
    if "unfinished" in summary:
        raise FBTError(f"{folder}: not the folder of a finished run ({summary['unfinished']})")
    if not summary.get("cell"):
        raise FBTError(f"{folder}: a run of no matrix")
    try:
        trial = _trial(summary, records, config, hardware)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FBTError(f"{folder}: not the folder of a finished run ({one_line(error)})") from error
    if problem := problem_of(asdict(trial)):
        raise FBTError(f"{folder}: not the folder of a finished run ({problem})")
    return trial


def _trial(summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]], config: str, hardware: str) -> Trial:
    rates = [record["train/images_per_second"] for record in records if "train/images_per_second" in record]
    kept = ("best_epoch", "seconds", "device", "world_size", "versions", "git")
    measure = summary.get("measure", "top1")
    return Trial(
        pair=summary["cell"]["pair"],
        method=summary["cell"]["method"],
        seed=summary["seed"],
        about=summary["cell"]["about"],
        top1=_figures(summary, "", measure),
        split=summary["split"],
        images=round(median(rates), 1) if rates else None,
        curve=[{"epoch": r["epoch"], **_figures(r, "val/", measure)} for r in records if f"val/student_{measure}" in r],
        reference=summary.get("reference"),
        config=config,
        hardware=hardware,
        about_run={key: summary.get(key) for key in kept},
        cka=summary.get("cka"),
        splices=summary.get("splices"),
        measure=measure,
        also={other: _figures(summary, "", other) for other in summary.get("also_measured", ())},
    )


def _figures(record: Mapping[str, Any], prefix: str, measure: str) -> dict[str, float]:
    end = f"_{measure}"
    names = [k for k in record if k.startswith(prefix) and k.endswith(end) and "best" not in k]
    return {k.removeprefix(prefix).removesuffix(end): round(record[k], 4) for k in names}


def trials_file(given: Path) -> Path:
    """The file of finished runs that a user means: the path itself, or the ``trials.jsonl`` in that folder.

    Raises:
        FBTError: if there is none.
    """
    file = given / TRIALS if given.is_dir() else given
    if file.suffix != Path(TRIALS).suffix or not file.is_file():
        raise FBTError(f"{given}: no finished runs; expected is a {TRIALS}, or a folder that has one")
    return file


def read_trials(path: Path, tell: Callable[[str], None]) -> list[Trial]:
    """The finished runs of a file, by pair, method and seed; none where there is no file.

    Several machines may have added lines, and git merges them by keeping all. So a run whose line is there more than
    once counts once; where lines of one run differ, the first counts. A line that is no JSON does not count: a killed
    process leaves half a line, a merge by hand its marks.

    Args:
        path: of the file.
        tell: shows a line to the user; told is what does not count.

    Raises:
        FBTError: if the file cannot be read, or for a line of JSON that is no trial.
    """
    try:
        lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise FBTError(f"{path}: it cannot be read ({error.strerror})") from error
    found: dict[tuple[str, str, int, str], Trial] = {}
    broken: list[int] = []
    others: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            trial = Trial.from_line(line.decode())
        except TypeError as error:
            raise FBTError(f"{path}, line {number}: not a trial ({error})") from error
        except ValueError:
            broken.append(number)
            continue
        if found.setdefault(trial.run, trial) != trial:
            others.append(f"{trial.name}, line {number}")
    left_out = f"{path}: lines left out because they"
    if broken:
        tell(f"{left_out} are not whole: {len(broken)} (the first is line {broken[0]})")
    if others:
        tell(f"{left_out} differ from an earlier one of the same run: {len(others)} (the first is {others[0]})")
    return [found[run] for run in sorted(found)]


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
                    replace(
                        best, method=method, about=about, images=None, reference=None, config="", cka=None, splices=None
                    )
                )
    return found


def problem_of(values: Mapping[str, Any]) -> str | None:
    """The first thing that is wrong with a trial's fields, in words; None where all are what they should be."""
    for key, (fits, expected) in _FIELDS.items():
        if key not in values:
            return f"it has no {key!r}"
        if not fits(values[key]):
            return f"{key}: expected {expected}, got {short(values[key])}"
    if not _maps(values.get("cka")):
        return "cka: expected maps of numbers with the names of their rows and columns"
    if not _text(values.get("measure", "top1")):
        return "measure: expected a word such as top1 or knn"
    if not _others(values.get("also", {})):
        return "also: expected numbers by model, the student's among them, by measure"
    if not _splices(values.get("splices")):
        return "splices: expected lists of splices by fusion model"
    return None


def _whole(value: Any) -> bool:
    return type(value) is int


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _numbers(value: Any, *needed: str) -> bool:
    return isinstance(value, dict) and all(map(is_number, value.values())) and set(needed) <= value.keys()


def _others(value: Any) -> bool:
    return isinstance(value, dict) and all(_numbers(figures, "student") for figures in value.values())


def _curve(value: Any) -> bool:
    return isinstance(value, list) and all(_numbers(point, "epoch", "student") for point in value)


def _published(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and is_number(value.get("top1")) and _text(value.get("source")))


def _about_run(value: Any) -> bool:
    if not isinstance(value, dict) or not (value.get("seconds") is None or is_number(value["seconds"])):
        return False
    versions, git = value.get("versions") or {}, value.get("git") or {}
    return isinstance(versions, dict) and isinstance(git, dict) and (not git or "commit" in git)


def _splices(value: Any) -> bool:
    if value is None:
        return True
    lists = value.values() if isinstance(value, dict) else [None]
    return all(isinstance(texts, list) and all(map(_text, texts)) for texts in lists)


def _maps(value: Any) -> bool:
    if not value:
        return value is None or value == {}
    maps = value.get("maps") if isinstance(value, dict) else None
    return isinstance(maps, dict) and _whole(value.get("images")) and all(map(_map, maps.values()))


def _map(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    parts = [value.get(key) for key in ("models", "rows", "columns")]
    if not all(isinstance(names, list) and names and all(map(_text, names)) for names in parts):
        return False
    lines = value.get("values")
    return isinstance(lines, list) and len(lines) == len(value["rows"]) and all(_line(v, value) for v in lines)


def _line(line: Any, of: Mapping[str, Any]) -> bool:
    return isinstance(line, list) and len(line) == len(of["columns"]) and all(v is None or is_number(v) for v in line)


_NAME = (is_name, "a name that can be a folder's")
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "pair": _NAME,
    "method": _NAME,
    "seed": (_whole, "a whole number"),
    "about": (_text, "text"),
    "top1": (lambda value: _numbers(value, "student"), "numbers by model, the student's among them"),
    "split": (_text, "text"),
    "images": (lambda value: value is None or (is_number(value) and value > 0), "a number above 0, or null"),
    "curve": (_curve, "a list of points, each with numbers for epoch and student"),
    "reference": (_published, "null, or a figure (top1) and its source"),
    "config": (_text, "text"),
    "hardware": (_text, "text"),
    "about_run": (_about_run, "an object with seconds, versions and git"),
}
