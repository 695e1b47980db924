"""What the metrics of an evaluator measure, and what they want to be told for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ...distill.distiller import Distiller
from .features import FeatureMetric, Seen


class Measure(NamedTuple):
    """A figure that a metric gives of each model.

    Attributes:
        key: what its name ends in: "student_KEY".
        title: what people call it.
    """

    key: str
    title: str


def measures(metrics: Iterable[Any]) -> list[Measure]:
    """What metrics measure, the first first; a metric of somebody else's that does not say is left out.

    Args:
        metrics: of an evaluator. Ours say by ``key`` and ``title``.
    """
    found = [Measure(metric.key, metric.title) for metric in metrics if hasattr(metric, "key")]
    return list(dict.fromkeys(found)) or [Measure("top1", "top-1")]


def wants(metrics: Iterable[Any]) -> frozenset[str]:
    """ "logits", "features" or both: what metrics say by ``wants``; one that does not say wants logits."""
    return frozenset(getattr(metric, "wants", "logits") for metric in metrics)


def unmeasurable(metrics: Iterable[Any], split: str, distiller: Distiller, classes: int | None) -> list[str]:
    """Why metrics cannot measure some models.

    Args:
        metrics: of an evaluator.
        split: whose it is.
        distiller: with the models; with or without weights.
        classes: of the split's images; None where that is not known, 0 where they have no labels.

    Returns:
        One line each.
    """
    problems = []
    student = distiller.student.num_classes
    for metric in metrics:
        where = f"{split}_evaluator: {type(metric).__name__}"
        if getattr(metric, "wants", None) == "logits" and not student:
            problems.append(f"{where} needs logits, and the student has no classifier (num_classes=0): {_OTHERS}")
        elif getattr(metric, "wants", None) == "logits" and classes not in (None, 0, student):
            what = f"the student has {student} classes, and the images of this split {classes}"
            problems.append(f"{where}: {what}: set num_classes, or {_OTHERS}")
        if getattr(metric, "needs_teacher", False) and distiller.teacher is None:
            problems.append(
                f"{where} compares with a teacher, and there is none: set model.teacher, or measure something else"
            )
    return problems


_OTHERS = "measure with KNN, LinearProbe or Retrieval (docs/guides/training.md)"


def fill_banks(metrics: Iterable[Any], distiller: Distiller, names: Sequence[str]) -> None:
    """Lets some of a distiller's models look at the labelled images that metrics compare with, once at each bank.

    All processes call it.

    Args:
        metrics: of an evaluator.
        distiller: in eval mode.
        names: of the models.
    """
    looked_at: list[tuple[Any, Seen | None]] = []
    for metric in metrics:
        if isinstance(metric, FeatureMetric) and metric.bank_loader is not None:
            known = [seen for bank, seen in looked_at if bank == metric.bank]
            if not known:
                known = [metric.look_at_bank(distiller, names)]
                looked_at.append((metric.bank, known[0]))
            if known[0] is not None:  # the first process alone computes metrics
                metric.fill_bank(known[0])
