"""What losses share: precision, checks of what they are given, rows of all ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from fbt_plugins import Batch, ConfigError, Knowledge, full_precision

__all__ = [
    "all_ranks",
    "full_precision",
    "gathered",
    "not_negative",
    "positive",
    "ranks",
    "same_images",
    "same_shape",
    "target_class",
    "the_teacher",
    "widths",
]


def same_shape(what: str, student: Tensor, teacher: Tensor, remedy: str) -> None:
    """Refuses two tensors of different shapes.

    Raises:
        ValueError: naming both shapes.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"{what} of shape {tuple(student.shape)} (receiver) and {tuple(teacher.shape)} (giver): {remedy}"
        )


def the_teacher(loss: str, teacher: Knowledge | None) -> Knowledge:
    """The giver's knowledge, which all but task losses need.

    Raises:
        ValueError: if there is none.
    """
    if teacher is None:
        raise ValueError(f"{loss} compares two models; as a task loss use CrossEntropyLoss")
    return teacher


def same_images(student: Tensor, teacher: Tensor) -> None:
    """Refuses features that are not of as many images.

    Raises:
        ValueError: naming both shapes.
    """
    if student.ndim != 2 or student.shape[:-1] != teacher.shape[:-1]:
        raise ValueError(
            f"features of shape {tuple(student.shape)} (receiver) and {tuple(teacher.shape)} (giver): "
            "both must be (N, width) for the same N images"
        )


def widths(loss: str, data_info: Mapping[str, int]) -> tuple[int, int]:
    """Widths of the receiver's and the giver's features, in a loss's ``setup``.

    Raises:
        ConfigError: if there is no giver.
    """
    if "teacher_features" not in data_info:
        raise ConfigError(f"{loss} compares two models; as a task loss use CrossEntropyLoss")
    return data_info["student_features"], data_info["teacher_features"]


def target_class(loss: str, batch: Batch) -> Tensor:
    """(N,) target classes; of soft labels the largest.

    Raises:
        ValueError: if the batch has no labels.
    """
    if batch.labels is None:
        raise ValueError(f"{loss} needs labels, and this batch has none")
    return batch.labels.argmax(1) if batch.labels.ndim == 2 else batch.labels


def positive(name: str, value: float) -> float:
    """A finite number above 0.

    Raises:
        ValueError: if it is not.
    """
    if not value > 0:
        raise ValueError(f"{name} must be above 0, not {value}")
    return _finite(name, value)


def not_negative(name: str, value: float) -> float:
    """A finite number of at least 0.

    Raises:
        ValueError: if it is not.
    """
    if not value >= 0:
        raise ValueError(f"{name} must be at least 0, not {value}")
    return _finite(name, value)


def _finite(name: str, value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, not {value}")
    return float(value)


def ranks() -> int:
    """Processes that train together; 1 where nothing is distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_ranks(rows: Tensor) -> Tensor:
    """All ranks' rows in the order of ranks, without gradient; every rank gives as many."""
    if ranks() == 1:
        return rows.detach()
    gathered = rows.new_empty(ranks() * len(rows), *rows.shape[1:])
    dist.all_gather_into_tensor(gathered, rows.detach().contiguous())
    return gathered


def gathered(rows: Tensor) -> Tensor:
    """All ranks' rows in the order of ranks, as :func:`all_ranks`; backward sums what every rank wants of its rows.

    DDP averages the ranks' gradients: they are those of one process with all images where each rank computes the loss
    of all rows, or the mean over its own rows against all.
    """
    return rows if ranks() == 1 else _Gather.apply(rows)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return all_ranks(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        count = len(gradient) // dist.get_world_size()
        return gradient[dist.get_rank() * count : (dist.get_rank() + 1) * count]
