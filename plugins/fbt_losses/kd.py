"""Logits by their Kullback-Leibler divergence: KD, DKD (decoupled) and BKD (a binary question for each class)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fbt_plugins import Batch, Knowledge

from .numerics import full_precision, not_negative, positive, same_shape, the_teacher


class KDLoss(nn.Module):
    """``T^2 KL(softmax(z_t / T) || softmax(z_s / T))``, mean over the batch (Hinton et al., arXiv 1503.02531, eq. 1).

    Args:
        temperature: T, which logits are divided by; 1 is what the comparisons of the cross-architecture literature use
            (OFA-KD, arXiv 2310.19444).

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


class DKDLoss(nn.Module):
    """``T^2 (alpha TCKD + beta NCKD)``, mean over the batch (Zhao et al., arXiv 2203.08679, eq. 7).

    With p = softmax(z / T) and target class c, TCKD is ``KL(b_t || b_s)`` of b = (p^c, 1 - p^c), and NCKD is
    ``KL(q_t || q_s)`` of the other classes among themselves, q = softmax of z / T without c. Hinton's KD is
    ``TCKD + (1 - p_t^c) NCKD`` (eq. 6): beta in the place of (1 - p_t^c) keeps what a sure teacher says of the others.

    Args:
        alpha: weight of TCKD.
        beta: weight of NCKD; the paper tunes it by pair of models.
        temperature: T, which logits are divided by. All three defaults are what the comparisons of the
            cross-architecture literature use (OFA-KD, arXiv 2310.19444).

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, alpha: float = 1.0, beta: float = 2.0, temperature: float = 1.0) -> None:
        super().__init__()
        self.alpha, self.beta = not_negative("alpha", alpha), not_negative("beta", beta)
        self.temperature = positive("temperature", temperature)

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        """The target class of soft labels is their largest, and the teacher's where an image has none."""
        given = the_teacher("DKDLoss", teacher).logits
        same_shape("logits", student.logits, given, "both models need the same classes")
        target = batch.target_class(given)
        with full_precision(student.logits, given) as (z_s, z_t):
            b_s, q_s = _decoupled(z_s / self.temperature, target)
            b_t, q_t = _decoupled(z_t / self.temperature, target)
            tckd = F.kl_div(b_s, b_t, reduction="batchmean", log_target=True)
            nckd = F.kl_div(q_s, q_t, reduction="batchmean", log_target=True)
            return (self.alpha * tckd + self.beta * nckd) * self.temperature**2


def _decoupled(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of target and not target (N, 2), and of the other classes among themselves (N, C - 1)."""
    others = torch.arange(logits.shape[1] - 1, device=logits.device)
    rest = logits.gather(1, others + (others >= target[:, None]))
    # Not log(1 - p): that is the logarithm of 0 for a sure model.
    binary = torch.cat([logits.gather(1, target[:, None]), rest.logsumexp(1, keepdim=True)], 1)
    return binary.log_softmax(1), rest.log_softmax(1)


class BKDLoss(nn.Module):
    """``-(p_t log s + (1 - p_t) log(1 - s))``, mean over batch and classes; p_t = softmax(z_t), s = sigmoid(z_s).

    Binary cross-entropy of each class of the student with the teacher's probability of it, for recipes whose task loss
    is binary cross-entropy. It follows the released code of VanillaKD (arXiv 2305.15781, ``losses/bkd.py``, where it is
    named a KL divergence: the teacher's entropy, by which the two differ, has no gradient). It is not 0 for two equal
    models, and as a mean over classes its gradients are C times smaller than KD's: weight it accordingly.
    """

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        given = the_teacher("BKDLoss", teacher).logits
        same_shape("logits", student.logits, given, "both models need the same classes")
        with full_precision(student.logits, given) as (z_s, z_t):
            return F.binary_cross_entropy_with_logits(z_s, z_t.softmax(1))
