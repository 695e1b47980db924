"""Mean squared error of features."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fbt_plugins import Batch, Knowledge

from .numerics import full_precision, same_shape, the_teacher


class MSELoss(nn.Module):
    """Mean of ``(f_s - f_t)^2`` over batch and width, on pooled features (the loss that FBT replaces by InfoNCE)."""

    needs = {"same_width": True}  # noqa: RUF012 - read by edges, never written

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        given = the_teacher("MSELoss", teacher).features
        same_shape("features", student.features, given, "a linear projector must make the widths equal")
        with full_precision(student.features, given) as (f_s, f_t):
            return F.mse_loss(f_s, f_t)
