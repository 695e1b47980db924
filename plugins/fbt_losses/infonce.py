"""InfoNCE between the features of two models, and the mean squared error that it replaces."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import distributed as dist

from fbt_plugins import Batch, Knowledge

from .numerics import full_precision, gathered, positive, ranks, same_shape, the_teacher


class InfoNCELoss(nn.Module):
    """``-log exp(s_ii / tau) / sum_j exp(s_ij / tau)``, mean over anchors i; s is the cosine similarity of features.

    FBT's feature loss (arXiv 2410.12342; InfoNCE: arXiv 1807.03748, eq. 4). Anchors are the receiver's features,
    positives the giver's of the same image, negatives the giver's of all other images, on all ranks.

    Args:
        temperature: tau, which similarities are divided by; where it starts, if it is trained.
        learnable: whether tau is trained, as ``exp`` of a parameter, within ``BOUNDS``.
        symmetric: whether the giver's features are anchors too, both directions averaged.

    Raises:
        ValueError: if the temperature is outside of ``BOUNDS``.
    """

    BOUNDS = (0.01, 1.0)
    """tau below the first makes gradients explode; above the second the loss no longer tells images apart."""

    needs = {"same_width": True}  # noqa: RUF012 - read by edges, never written

    def __init__(self, temperature: float = 0.07, learnable: bool = True, symmetric: bool = False) -> None:
        super().__init__()
        positive("temperature", temperature)
        if not self.BOUNDS[0] <= temperature <= self.BOUNDS[1]:
            raise ValueError(f"temperature must be from {self.BOUNDS[0]} to {self.BOUNDS[1]}, not {temperature}")
        self.symmetric = symmetric
        start = torch.tensor(math.log(temperature))
        if learnable:
            self.log_temperature = nn.Parameter(start)
        else:
            self.register_buffer("log_temperature", start)

    @property
    def temperature(self) -> Tensor:
        """tau, a scalar."""
        return _Bounded.apply(self.log_temperature, *map(math.log, self.BOUNDS)).exp()

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        given = the_teacher("InfoNCELoss", teacher).features
        same_shape("features", student.features, given, "a linear projector must make the widths equal")
        with full_precision(student.features, given) as (f_s, f_t):
            f_s, f_t = F.normalize(f_s, dim=1), F.normalize(f_t, dim=1)
            tau = self.temperature.to(f_s.dtype)
            loss = self._one_way(f_s, f_t, tau)
            return (loss + self._one_way(f_t, f_s, tau)) / 2 if self.symmetric else loss

    @staticmethod
    def _one_way(anchors: Tensor, keys: Tensor, tau: Tensor) -> Tensor:
        first = 0
        if ranks() > 1:
            first = dist.get_rank() * len(keys)
            keys = gathered(keys)
        labels = torch.arange(first, first + len(anchors), device=anchors.device)
        return F.cross_entropy(anchors @ keys.T / tau, labels)


class _Bounded(torch.autograd.Function):
    """A clamp whose gradient passes wherever it leads back: a value at or beyond a bound is never stuck there."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(value)
        ctx.bounds = (low, high)
        return value.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (value,) = ctx.saved_tensors
        low, high = ctx.bounds
        outward = ((value <= low) & (gradient > 0)) | ((value >= high) & (gradient < 0))
        return gradient.masked_fill(outward, 0.0), None, None


class MSELoss(nn.Module):
    """Mean of ``(f_s - f_t)^2`` over batch and width, on pooled features (the loss that FBT replaces by InfoNCE)."""

    needs = {"same_width": True}  # noqa: RUF012 - read by edges, never written

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        given = the_teacher("MSELoss", teacher).features
        same_shape("features", student.features, given, "a linear projector must make the widths equal")
        with full_precision(student.features, given) as (f_s, f_t):
            return F.mse_loss(f_s, f_t)
