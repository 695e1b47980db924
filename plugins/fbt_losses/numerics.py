"""What all losses share: precision, and checks of what they are given."""

from __future__ import annotations

from torch import Tensor

from fbt_plugins import Batch, Knowledge, full_precision

__all__ = ["full_precision", "positive", "same_shape", "target_class", "the_teacher"]


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
