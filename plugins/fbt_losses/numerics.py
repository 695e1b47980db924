"""What all losses share: precision, and checks of what they are given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fbt_plugins import Batch, Knowledge


class full_precision:
    """Switches autocast off and gives the tensors in float32, or in float64 where they are that already."""

    def __init__(self, *tensors: Tensor) -> None:
        self._tensors = tensors
        device = tensors[0].device.type
        self._off = torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else None

    def __enter__(self) -> tuple[Tensor, ...]:
        if self._off is not None:
            self._off.__enter__()
        return tuple(t if t.dtype == torch.float64 else t.float() for t in self._tensors)

    def __exit__(self, *reason: Any) -> None:
        if self._off is not None:
            self._off.__exit__(*reason)


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


def target_class(loss: str, batch: Batch) -> Tensor:
    """(N,) target classes; of soft labels the largest.

    Raises:
        ValueError: if the batch has no labels.
    """
    if batch.labels is None:
        raise ValueError(f"{loss} needs labels, and this batch has none")
    return batch.labels.argmax(1) if batch.labels.ndim == 2 else batch.labels


def positive(name: str, value: float) -> float:
    """A number above 0.

    Raises:
        ValueError: if it is not.
    """
    if not value > 0:
        raise ValueError(f"{name} must be above 0, not {value}")
    return float(value)
