"""What a run is like where nobody says more than its images and models: method, sizes, batches and rates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...config.loading import shipped_methods
from ...config.merging import merge
from ...errors import ConfigError, nearest
from ..data_workers import AUTO, worker_count
from .folder import Folder

SLOTS = ("feature_loss", "stage_loss", "logit_loss")
_BATCH = 64
_STEPS, _FEWEST, _MOST = 5_000, 10, 50
"""Steps that a run has about, within these numbers of epochs."""

_BANK = 20_000
"""Training images that are a bank of neighbours at most."""


@dataclass(frozen=True)
class Choices:
    """What may be said, and else has a default.

    Attributes:
        method: of ``configs/_base_/methods.py``.
        epochs: by default about 5,000 steps, 10 to 50 epochs.
        batch_size: by default 64, or less where that makes fewer than four batches, but 8.
        lr: AdamW's; by default 1e-3 for a batch of 64, with the root of the batch, and a third of it for a student that
            has weights already.
        workers: processes that read images; by default one for each core that it may use, up to 8.
    """

    method: str = "fbt"
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        wrong = [
            f"--{name.replace('_', '-')} is a whole number, {least} or more, not {value!r}"
            for name, least in (("epochs", 1), ("batch_size", 2), ("workers", 0))
            if (value := getattr(self, name)) is not None and not (type(value) is int and value >= least)
        ]
        if self.lr is not None and not (isinstance(self.lr, int | float) and 0 < self.lr < math.inf):
            wrong.append(f"--lr is a number above 0, not {self.lr!r}")
        if wrong:
            raise ConfigError(wrong)


@dataclass(frozen=True)
class Method:
    """A method, as far as it goes with what the models and the images have.

    Attributes:
        about: what it is.
        model: of the config, without teacher and student.
        left_out: what of it does not go with them, in words; empty for nothing.
    """

    about: str
    model: dict[str, Any]
    left_out: str = ""

    @property
    def has_teacher(self) -> bool:
        """Whether anybody teaches."""
        return "teacher" not in self.model


def method(name: str, labels: bool, logits: bool) -> Method:
    """A method by its name.

    Args:
        name: in ``configs/_base_/methods.py``.
        labels: whether there are any.
        logits: whether the teacher's classes are the images'.

    Raises:
        ConfigError: if there is none of that name, or nothing is left of it without labels or logits.
    """
    methods, common = shipped_methods()
    if name not in methods:
        raise ConfigError(f"--method {name}: there is no such method{nearest(name, methods, limit=40)}")
    found = _method(methods[name], common, labels, logits)
    if found is None:
        fitting = ", ".join(other for other in methods if _method(methods[other], common, labels, logits))
        why = "needs labels" if "teacher" in methods[name]["model"] else "compares logits alone"
        lacking = "the images have none" if not labels else "the teacher's classes are not those of the images"
        raise ConfigError(f"--method {name} {why}, and {lacking}; those that go: {fitting}")
    return found


def _method(entry: Mapping[str, Any], common: Mapping[str, Any], labels: bool, logits: bool) -> Method | None:
    model = merge(common, entry["model"])
    left_out = ""
    if not labels:
        model["task_loss"] = None
    if model.get("logit_loss") and not logits:
        left_out = f"without {model['logit_loss']['type']}, which compares logits"
        model["logit_loss"] = None
    taught = any(model.get(slot) for slot in SLOTS)
    if not taught and not ("teacher" in model and labels):
        return None
    return Method(entry["about"], {key: value for key, value in model.items() if key != "type"}, left_out)


def recipe(
    folder: Folder,
    method: Method,
    models: Mapping[str, Mapping[str, Any]],
    size: int,
    choices: Choices,
) -> dict[str, Any]:
    """A run's config.

    Args:
        folder: its images.
        method: what is learned.
        models: configs of teacher and student.
        size: pixels of a side of the images that come out of the pipeline.
        choices: what has been said.

    Raises:
        ConfigError: if there are fewer images than a batch is said to have.
    """
    few = max(2 ** int(math.log2(max(folder.images // 4, 1))), 8)
    if (choices.batch_size or 0) > folder.images:
        raise ConfigError(
            f"--batch-size {choices.batch_size:,}: {folder.images:,} images make no batch of so many; "
            f"say {folder.images:,} or less"
        )
    batch = choices.batch_size or min(_BATCH, few, folder.images)
    steps = max(folder.images // batch, 1)
    epochs = choices.epochs or min(max(math.ceil(_STEPS / steps), _FEWEST), _MOST)
    learned = any(key in models["student"] for key in ("pretrained", "checkpoint"))
    rate = choices.lr or float(f"{1e-3 * math.sqrt(batch / _BATCH) / (3 if learned else 1):.2g}")
    workers = worker_count(AUTO if choices.workers is None else choices.workers)
    reading = {"num_workers": workers} | ({"persistent_workers": True} if workers else {})

    def loader(images: Mapping[str, Any], transforms: list[dict[str, Any]], training: bool) -> dict[str, Any]:
        return {
            "batch_size": batch,
            **reading,
            **({"drop_last": True} if training else {}),
            "dataset": {"type": "Images", **images, "transforms": transforms},
            "sampler": {"type": "SeededSampler", "shuffle": training},
        }

    random_view: list[dict[str, Any]] = [
        dict(type="RandomResizedCrop", size=[size, size], scale=[0.3, 1.0], interpolation="bicubic"),
        dict(type="RandomHorizontalFlip"),
    ]
    centre: list[dict[str, Any]] = [
        dict(type="Resize", size=round(size * 8 / 7), interpolation="bicubic"),
        dict(type="CenterCrop", size=size),
    ]
    evaluator = _evaluator(folder, method, loader(folder.train, centre, training=False))
    test = None if folder.test is None else loader(folder.test, centre, training=False)
    return {
        "model": {"type": "Distiller", **models, **method.model},
        "train_dataloader": loader(folder.train, random_view, training=True),
        "val_dataloader": loader(folder.val, centre, training=False),
        "val_evaluator": evaluator,
        "val_cfg": {},
        "test_dataloader": test,
        "test_evaluator": evaluator if test else None,
        "test_cfg": {} if test else None,
        "train_cfg": dict(by_epoch=True, max_epochs=epochs, val_interval=max(1, epochs // 20)),
        "optim_wrapper": dict(
            optimizer=dict(type="AdamW", lr=rate, weight_decay=0.05),
            constructor="MergedGroupConstructor",
            clip_grad=dict(max_norm=5.0),
        ),
        "param_scheduler": _schedule(epochs),
    }


def _schedule(epochs: int) -> list[dict[str, Any]]:
    """Some epochs of warm-up where there are several, then a cosine."""
    warm = max(1, epochs // 20) if epochs > 1 else 0
    cosine = dict(type="CosineAnnealingLR", begin=warm, end=epochs, T_max=epochs - warm, eta_min=1e-6)
    rise = [dict(type="LinearLR", start_factor=0.01, end=warm)] if warm else []
    return [{**schedule, "convert_to_iter_based": True} for schedule in (*rise, cosine)]


def _evaluator(folder: Folder, method: Method, bank: dict[str, Any]) -> list[dict[str, Any]]:
    """Accuracy where there are labels; features are compared where the teacher has nothing else.

    Args:
        folder, method: of the run.
        bank: loader of the training images without augmentation, in which neighbours are looked for; it is looked at
            before each validation, so where images are many, the held-out ones are compared among themselves.
    """
    if not folder.classes:
        return [dict(type="Retrieval")]
    top = dict(type="TopK", topk=[1, 5])
    if method.model.get("logit_loss") or not method.has_teacher:
        return [top]
    return [top, dict(type="KNN", bank=bank) if folder.images <= _BANK else dict(type="KNN")]
