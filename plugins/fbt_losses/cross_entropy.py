"""Cross-entropy against the labels: the task loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import distributed as dist

from fbt_plugins import Batch, Knowledge, StageSpec

from .numerics import full_precision, ranks


class CrossEntropyLoss(nn.Module):
    """``-sum_i y_i log softmax(z)_i``, mean over the batch's labelled images; it ignores the teacher.

    Images without a label do not count, and a batch that has no label gives 0. Where several processes train, each
    weights its mean by its part of all labelled images of the step, so that they together descend the mean over those.

    Args:
        label_smoothing: epsilon of Szegedy et al. (arXiv 1512.00567): (1 - e) of the label, e spread over all classes.

    Raises:
        ValueError: if it is not in [0, 1).
    """

    needs = {"labels": True}  # noqa: RUF012 - read by edges, never written

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), not {label_smoothing}")
        self.label_smoothing = label_smoothing
        self.all_labelled = False

    def setup(
        self, student_specs: Sequence[StageSpec], teacher_specs: Sequence[StageSpec], data_info: Mapping[str, int]
    ) -> None:
        """Where all images of the data set have labels, processes need not tell each other how many they saw."""
        self.all_labelled = data_info.get("num_labelled") == data_info.get("num_samples", -1)

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        """Labels are class numbers (N,) or soft (N, C)."""
        labels, labelled = batch.labels, batch.labelled
        if labels is None or labelled is None:
            raise ValueError("CrossEntropyLoss needs labels, and this batch has none")
        with full_precision(student.logits) as (logits,):
            here = labelled.sum()
            if labels.is_floating_point():
                e, classes = self.label_smoothing, logits.shape[1]
                smooth = labels.to(logits.dtype) * (1 - e) + labelled[:, None] * (e / classes)
                value = F.cross_entropy(logits, smooth) * (len(labels) / here.clamp(min=1))  # those of zeros add 0
            else:
                # A mean over no image would be NaN: one is taken to have a label, and the value is multiplied by 0.
                labels = torch.where(here == 0, labels.clamp(min=0), labels)
                value = F.cross_entropy(logits, labels, ignore_index=-1, label_smoothing=self.label_smoothing)
                value = value * (here > 0)
            return value if self.all_labelled or ranks() == 1 else value * _part(here)


def _part(here: Tensor) -> Tensor:
    """This process's part of the step's labelled images, times the number of processes: gradients are averaged."""
    total = here.clone()
    dist.all_reduce(total)
    return here * ranks() / total.clamp(min=1)
