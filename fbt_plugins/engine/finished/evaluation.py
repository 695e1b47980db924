"""A run's models tested again: whatever its evaluator measures, and which classes are taken for which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.registry import MODELS
from torch import Tensor

from ...config.loading import Arguments, run_config
from ...data.mixing import ImagePreprocessor
from ...distill.distiller import Distiller
from ...distill.edge import STUDENT, TEACHER
from ...errors import ConfigError, FBTError, user_path
from ...models.weights import SUFFIX, load_weights, misfit
from ...randomness import seeded
from ..check import check_config
from ..checkpoints.files import best_checkpoints, read_checkpoint
from ..device import resolve_device
from ..hooks.topk import evaluate
from ..loaders import build_loader, loader_problems, open_banks
from .student import STUDENT_FILE

TESTED = ("test", "val")
"""Splits that can be tested; the first that a config has is taken where nobody says which."""

TOP = 5
_OURS = ("student.", "fusions.")
"""What of a checkpoint is needed: losses and their memories are not."""


@dataclass(frozen=True)
class ClassFigures:
    """How well a model does on one class; shares in percent, None of nothing.

    Attributes:
        name: of the class.
        images: that have its label.
        top1: those of them that are said to be of it.
        top5: those of them with it among the five likeliest; None where there are no more than five classes.
        precision: of the images said to be of it, those that are.
    """

    name: str
    images: int
    top1: float | None
    top5: float | None
    precision: float | None


@dataclass(frozen=True)
class Tested:
    """What a test found.

    Attributes:
        split: "test" or "val".
        images: of it.
        weights: the file that the student's are from.
        names: the models, and what each is.
        metrics: what the run's evaluator measured.
        classes: names.
        confusion: by model that has a classifier, images by true class and said class.
        per_class: by the same models.
    """

    split: str
    images: int
    weights: Path
    names: Mapping[str, str]
    metrics: Mapping[str, float]
    classes: Sequence[str]
    confusion: Mapping[str, list[list[int]]]
    per_class: Mapping[str, list[ClassFigures]]

    def mistakes(self, name: str, most: int) -> list[tuple[str, str, int]]:
        """True class, said class and number of images of a model's most frequent mistakes."""
        table = self.confusion[name]
        found = [
            (count, row, column)
            for row, counts in enumerate(table)
            for column, count in enumerate(counts)
            if row != column
        ]
        found = sorted((item for item in found if item[0]), key=lambda item: (-item[0], item[1:]))
        return [(self.classes[row], self.classes[column], count) for count, row, column in found[:most]]


class Confusion(BaseMetric):
    """Counts, for every model that has a classifier, which class is taken for which.

    Images without a label (-1) are left out.

    Attributes:
        counts: by model, (C, C) images by true and said class.
        among: by model, (C,) images whose class is among the five likeliest.
    """

    default_prefix = ""

    def __init__(self) -> None:
        super().__init__(collect_device="cpu", prefix="")
        self.counts: dict[str, Tensor] = {}
        self.among: dict[str, Tensor] = {}

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Tensor]]) -> None:
        """Takes ``{"labels": (N,), model: logits (N, C), ...}``; "index" and "features/model" are not looked at."""
        for sample in data_samples:
            labels = sample["labels"].cpu()
            known = labels >= 0
            for name, logits in sample.items():
                if name in ("labels", "index") or "/" in name:
                    continue
                classes = logits.shape[1]
                best = logits.cpu()[known].topk(min(TOP, classes), dim=1).indices
                true = labels[known]
                counts = self.counts.setdefault(name, torch.zeros(classes * classes, dtype=torch.int64))
                counts += torch.bincount(true * classes + best[:, 0], minlength=classes * classes)
                among = self.among.setdefault(name, torch.zeros(classes, dtype=torch.int64))
                among += torch.bincount(true[(best == true[:, None]).any(1)], minlength=classes)
        self.results.append(None)  # mmengine warns of a metric without any

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        return {}

    def table(self, name: str) -> list[list[int]]:
        """A model's counts."""
        size = len(self.among[name])
        table: list[list[int]] = self.counts[name].reshape(size, size).tolist()
        return table

    def per_class(self, name: str, classes: Sequence[str]) -> list[ClassFigures]:
        """A model's figures of each class."""
        table, among = torch.tensor(self.table(name)), self.among[name]
        true, said, right = table.sum(1), table.sum(0), table.diag()
        return [
            ClassFigures(
                classes[i],
                int(true[i]),
                _percent(right[i], true[i]),
                _percent(among[i], true[i]) if len(classes) > TOP else None,
                _percent(right[i], said[i]),
            )
            for i in range(len(classes))
        ]


def _percent(part: Tensor, whole: Tensor) -> float | None:
    return 100 * int(part) / int(whole) if int(whole) else None


def read_run(
    target: str,
    options: Mapping[str, Any] | None = None,
    pair: str | None = None,
    method: str | None = None,
    device: str | None = None,
) -> tuple[Config, Path]:
    """The config of a run and its folder.

    Args:
        target: the folder of a run, or a config, whose run is in the folder that ``fbt train`` would take.
        options, pair, method, device: as :func:`run_config` takes them.

    Raises:
        FBTError: if there is no such run, or its config cannot be read.
    """
    path = user_path(target)
    arguments = Arguments(device=device)
    if not path.is_dir():
        config = run_config(target, options, pair, method, arguments)
        return config, Path(config.work_dir)
    file = path / "config.py"
    if not file.is_file():
        raise FBTError(f"run {target!r}: no config.py in it: it is no run's folder")
    return run_config(file, options, pair, method, arguments), path


def find_split(config: Config, split: str | None) -> str:
    """The split to test.

    Raises:
        ConfigError: if the config has no such split, or none.
    """
    there = [name for name in TESTED if config.get(f"{name}_dataloader") and config.get(f"{name}_evaluator")]
    if split is None and there:
        return there[0]
    if split not in there:
        what = f"no {split}_dataloader with a {split}_evaluator" if split else "neither a test nor a val split"
        raise ConfigError(f"{config.filename}: {what}{f'; it has {there[0]}' if there else ''}")
    return split


def find_trained(folder: Path) -> Path:
    """The weights that a run's validation chose: its best checkpoint, which has fusion models too, or its student.

    Raises:
        FBTError: if there is neither.
    """
    found = [path for _, path in best_checkpoints(folder, epoch_length=1)]
    if found:
        return found[-1]
    if (file := folder / STUDENT_FILE).is_file():
        return file
    why = "no run has ended there" if folder.is_dir() else "no such folder"
    raise FBTError(f"run {str(folder)!r}: {why}; train first, or name weights with --checkpoint")


def test_run(config: Config, weights: Path, split: str) -> Tested:
    """Tests a run's student, its teacher, and its fusion models where the weights have them.

    Args:
        config: of the run.
        weights: a checkpoint of it, or a student's file.
        split: that the config has.

    Raises:
        FBTError: for what is wrong with config, data or weights.
    """
    check_config(config)
    device = resolve_device(config.get("device"), False)
    where = f"{split}_dataloader"
    loader: Any = build_loader(config[where], config.randomness.get("seed"), device)
    if problems := loader_problems(loader, where):
        raise ConfigError(problems)
    dataset = loader.dataset
    distiller = _build(config, dataset)
    names = _load(distiller, weights)
    distiller.to(device)
    chosen = config[f"{split}_evaluator"]
    confusion = Confusion()
    evaluator = Evaluator([*(chosen if isinstance(chosen, list | tuple) else [chosen]), confusion])
    evaluator.dataset_meta = getattr(dataset, "metainfo", None)
    if problems := open_banks(evaluator.metrics, dataset, split, config.randomness.get("seed"), device):
        raise ConfigError(problems)
    metrics = evaluate(distiller, loader, evaluator, names)
    classes = list(map(str, dataset.classes))
    fits = [name for name in names if name in confusion.counts and len(confusion.among[name]) == len(classes)]
    about = {
        name: distiller.models[name].name if name in distiller.models else str(distiller.fusions[name].splices[0])
        for name in names
    }
    return Tested(
        split,
        len(dataset),
        weights,
        about,
        metrics,
        classes,
        {name: confusion.table(name) for name in fits},
        {name: confusion.per_class(name, classes) for name in fits},
    )


def _build(config: Config, dataset: Any) -> Distiller:
    model = config.model.to_dict() if isinstance(config.model, Config) else dict(config.model)
    student = dict(model["student"])
    if student.get("pretrained") is True:  # weights that would be replaced at once
        student["pretrained"] = False
        student.pop("head", None)
    context = {
        "student": student,
        "image_size": dataset.image_size,
        "data_info": {"num_classes": len(dataset.classes), "num_samples": len(dataset)},
        "data_preprocessor": ImagePreprocessor(),
    }
    with seeded(config.randomness.get("seed") or 0):  # a teacher without weights is the run's own, too
        distiller: Distiller = MODELS.build({**model, **context})
    return distiller


def _load(distiller: Distiller, weights: Path) -> list[str]:
    """Puts weights into a distiller; the names of the models that then are what the run had."""
    if weights.suffix == SUFFIX:
        load_weights(distiller.student.net, str(weights), distiller.student.name)
        return [name for name in distiller.names if name in (STUDENT, TEACHER)]
    state = read_checkpoint(weights)["state_dict"]
    own = {name: value for name, value in distiller.state_dict().items() if name.startswith(_OURS)}
    state = {name: value for name, value in state.items() if name.startswith(_OURS)}
    if problem := misfit(own, state):
        raise FBTError(f"checkpoint {str(weights)!r} is not of this config's model: {problem}")
    distiller.load_state_dict(state, strict=False)
    return distiller.names
