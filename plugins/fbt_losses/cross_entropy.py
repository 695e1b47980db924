"""Cross-entropy against the labels: the task loss."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fbt_plugins import Batch, Knowledge

from .numerics import full_precision


class CrossEntropyLoss(nn.Module):
    """``-sum_i y_i log softmax(z)_i``, mean over the batch; it ignores the teacher.

    Args:
        label_smoothing: epsilon of Szegedy et al. (arXiv 1512.00567): (1 - e) of the label, e spread over all classes.

    Raises:
        ValueError: if it is not in [0, 1).
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), not {label_smoothing}")
        self.label_smoothing = label_smoothing

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        """Labels are class numbers (N,) or soft (N, C)."""
        if batch.labels is None:
            raise ValueError("CrossEntropyLoss needs labels, and this batch has none")
        with full_precision(student.logits) as (logits,):
            labels = batch.labels.to(logits.dtype) if batch.labels.is_floating_point() else batch.labels
            return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
