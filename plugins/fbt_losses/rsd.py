"""RSD: two models' features, each dimension over the batch, shall correlate with their own partner alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fbt_plugins import Batch, Knowledge, StageSpec

from .numerics import full_precision, gathered, not_negative, positive, same_images, the_teacher, widths

OF = ("features", "logits")


class RSDLoss(nn.Module):
    """``sum_i (P_ii - 1)^2 + kappa sum_(i != j) P_ij^2`` of the correlations P (D, D) between two models' dimensions.

    Redundancy suppression (Zhang et al., ICCV 2025, arXiv 2507.21844). With z the features of a batch of B images,
    each dimension is normalised over the batch, ``z~ = (z - mean) / (std + 1e-5)``, and ``P = z~_t^T z~_s / B``. The
    student's z_s come through a projector that is trained with it and that no exported student has: a linear layer
    ``expansion`` times as wide, BatchNorm, GELU, a linear layer of the teacher's width D; none has a bias, both start
    from a truncated normal of std 0.02. The paper's lambda is the loss's ``weight``, 0.1, beside labels alone.

    The value is a sum over the teacher's D dimensions, and nothing in it grows with the batch.

    Args:
        kappa: weight of the second sum: correlations between different dimensions.
        of: what is compared: "features", as published, or "logits", its ablation.
        gather: whether the batch is that of all processes, as in one process with all images; the published code
            takes each process's own. BatchNorm's is each process's own either way.
        expansion: hidden width of the student's projector, relative to the student's own width.

    Raises:
        ValueError: if an argument is out of range.
    """

    EPSILON = 1e-5

    def __init__(self, kappa: float = 0.01, of: str = "features", gather: bool = False, expansion: float = 2.0) -> None:
        super().__init__()
        if of not in OF:
            raise ValueError(f"of must be 'features' or 'logits', not {of!r}")
        self.kappa, self.of, self.gather = not_negative("kappa", kappa), of, gather
        self.expansion = positive("expansion", expansion)
        self.needs = {"min_batch": 2, "logits": of == "logits"}

    def setup(
        self, student_specs: Sequence[StageSpec], teacher_specs: Sequence[StageSpec], data_info: Mapping[str, int]
    ) -> None:
        """Makes the projector."""
        student, teacher = widths("RSDLoss", data_info)
        if self.of == "logits":
            student = teacher = data_info["num_classes"]
        hidden = max(round(self.expansion * student), 1)
        first, last = nn.Linear(student, hidden, bias=False), nn.Linear(hidden, teacher, bias=False)
        for layer in (first, last):
            nn.init.trunc_normal_(layer.weight, std=0.02)
        self.projector = nn.Sequential(first, nn.BatchNorm1d(hidden), nn.GELU(), last)

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        given = the_teacher("RSDLoss", teacher)
        received, wanted = getattr(student, self.of), getattr(given, self.of)
        same_images(received, wanted)
        with full_precision(received, wanted) as (x, z_t):
            z_s = self.projector(x)
            if self.gather:
                z_s, z_t = gathered(z_s), gathered(z_t)
            correlations = self._normalised(z_t).T @ self._normalised(z_s) / len(z_s)
            squares = (correlations - torch.eye(len(correlations)).to(correlations)).square()
            return self.kappa * squares.sum() + (1 - self.kappa) * squares.diagonal().sum()

    def _normalised(self, z: Tensor) -> Tensor:
        return (z - z.mean(0)) / (z.std(0, correction=0) + self.EPSILON)
