"""Hinton's knowledge distillation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fbt_plugins import Batch, Knowledge

from .numerics import full_precision, positive, same_shape, the_teacher


class KDLoss(nn.Module):
    """``T^2 KL(softmax(z_t / T) || softmax(z_s / T))``, mean over the batch (Hinton et al., arXiv 1503.02531, eq. 1).

    Args:
        temperature: T; 1 is what the comparisons of the cross-architecture literature use (OFA-KD, arXiv 2310.19444).

    Raises:
        ValueError: if it is not above 0.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        given = the_teacher("KDLoss", teacher).logits
        same_shape("logits", student.logits, given, "both models need the same classes")
        with full_precision(student.logits, given) as (z_s, z_t):
            log_s = (z_s / self.temperature).log_softmax(1)
            log_t = (z_t / self.temperature).log_softmax(1)
            return F.kl_div(log_s, log_t, reduction="batchmean", log_target=True) * self.temperature**2
