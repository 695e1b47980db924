"""Attention transfer: where in an image two models are active."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fbt_plugins import StageSpec, ToMap

from .numerics import positive
from .stage_loss import StageLoss, resized


class ATLoss(StageLoss):
    """``beta / 2 (Q_s / ||Q_s|| - Q_t / ||Q_t||)^2``, summed over stages (arXiv 1612.03928, eq. 2).

    Q is a stage's attention map ``sum_c |A_c|^p``, flattened to (N, positions), without prefix tokens; its norm is L2.
    The student's is interpolated to the teacher's grid where they differ, as section 3.1 allows. The square,
    which the authors' code has and the equation lacks, is a mean over batch and positions: the paper divides its beta
    of 1000 by their number. There are no parameters.

    Args:
        stages: the stages that are compared, from 1; the authors use all.
        beta: factor of the loss, 1000 in the paper. The authors' code and mdistiller leave out the 1/2: ``beta=2000``
            is what they do (where grids are equal: RepDistiller and mdistiller pool activations, not maps, to the
            smaller grid).
        p: exponent of the attention map.

    Raises:
        ValueError: if beta is not above 0, p is below 1, or stages are no stage numbers.
    """

    def __init__(self, stages: Sequence[int] = (1, 2, 3, 4), beta: float = 1000.0, p: float = 2.0) -> None:
        super().__init__(stages)
        if not p >= 1:  # below it the gradient of an activation of 0 is infinite
            raise ValueError(f"p must be at least 1, not {p}")
        self.beta, self.p = positive("beta", beta), float(p)

    def compare(self, student: StageSpec, teacher: StageSpec, number: int) -> nn.Module:
        return _Attention(student, teacher, self.beta, self.p)


class _Attention(nn.Module):
    def __init__(self, student: StageSpec, teacher: StageSpec, beta: float, p: float) -> None:
        super().__init__()
        self.student, self.teacher = ToMap(student), ToMap(teacher)
        self.beta, self.p = beta, p

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        target = self._map(self.teacher(y))
        q_s, q_t = resized(self._map(self.student(x)), target.shape[2:]).flatten(1), target.flatten(1)
        return self.beta / 2 * F.mse_loss(F.normalize(q_s, dim=1), F.normalize(q_t, dim=1))

    def _map(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 1, H, W)."""
        return x.abs().pow(self.p).sum(1, keepdim=True)
