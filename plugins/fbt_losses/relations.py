"""Relations between the images of a batch: RKD (distances and angles), CC (correlations)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fbt_plugins import Batch, Knowledge, StageSpec

from .numerics import full_precision, not_negative, positive, same_images, the_teacher, widths

READINGS = ("kernel", "difference")
"""Of CC: what the paper's words and its followers' code make of it."""


class RKDLoss(nn.Module):
    """``distance_weight L_D + angle_weight L_A`` on features (Park et al., arXiv 1904.05068, sections 3.2.1-2).

    L_D is the Huber loss of the distances of all pairs of images, each model's divided by their mean; L_A is that of
    the cosines of the angles of all triples. Both are means over all N^2 pairs and N^3 triples, equal
    images among them, as in the released code. Widths may differ; turning, moving and scaling features changes nothing.
    Images of one process's batch are compared; memory grows with N^3 (0.5 GB a model at N = 512).

    Args:
        distance_weight: weight of L_D.
        angle_weight: weight of L_A; twice the other, as in the paper, and both as large as in comparisons since
            RepDistiller (arXiv 1910.10699).

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, distance_weight: float = 25.0, angle_weight: float = 50.0) -> None:
        super().__init__()
        self.distance_weight = not_negative("distance_weight", distance_weight)
        self.angle_weight = not_negative("angle_weight", angle_weight)

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        given = the_teacher("RKDLoss", teacher).features
        same_images(student.features, given)
        with full_precision(student.features, given) as (f_s, f_t):
            (d_s, a_s), (d_t, a_t) = _relations(f_s), _relations(f_t)
            return self.distance_weight * F.smooth_l1_loss(d_s, d_t) + self.angle_weight * F.smooth_l1_loss(a_s, a_t)


def _relations(features: Tensor) -> tuple[Tensor, Tensor]:
    """Distances (N, N) divided by their mean, and cosines (N, N, N) of angles; 0 where two images coincide."""
    n = len(features)
    edges = features[None] - features[:, None]
    # From differences, not from products of features: cancellation would give equal images a distance, and a norm's
    # gradient at exactly 0 is 0.
    distances = edges.norm(dim=2)
    mean = distances.sum() / max(n * (n - 1), 1)
    units = edges / _or_one(distances)[:, :, None]
    return distances / _or_one(mean), torch.bmm(units, units.transpose(1, 2))


def _or_one(x: Tensor) -> Tensor:
    """x as a denominator: 1 instead of 0."""
    return x.masked_fill(x == 0, 1.0)


class CCLoss(nn.Module):
    """Correlation congruence of features (Peng et al., arXiv 1904.01802), in one of two readings:

    - "kernel", as published: ``1/N^2 sum_ij (K_s - K_t)^2`` with the Gaussian kernel of normalised features, expanded
      as a Taylor series, ``K_ij = e^(-2 gamma) sum_p (2 gamma)^p / p! (f_i . f_j)^p`` for p from 0 to ``order``. Widths
      may differ, and nothing is trained. Its values are small, for K is in (0, 1): weight it accordingly.
    - "difference", what the tables of RepDistiller (arXiv 1910.10699) and OFA-KD (arXiv 2310.19444) call CC: with
      d_i = |A f_s,i - B f_t,i| of two trained linear embeddings, the mean of ``d_i . d_j`` over pairs of images. Their
      code takes neighbours in the batch as pairs; over random orders that is on average what all pairs i != j are
      here, where the order means nothing. They weight it with 0.02: ``dict(type="CCLoss", reading="difference",
      weight=0.02)``. Nothing keeps the embeddings from shrinking.

    Images of one process's batch are compared; "difference" is 0 in a batch of one.

    Args:
        reading: which of the two: "kernel" or "difference".
        gamma: of the Gaussian kernel; larger compares nearer images only.
        order: terms of the kernel's Taylor series.
        dim: width of the trained embeddings; for "difference" alone.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, reading: str = "kernel", gamma: float = 0.4, order: int = 2, dim: int = 128) -> None:
        super().__init__()
        if reading not in READINGS:
            raise ValueError(f"reading must be 'kernel' or 'difference', not {reading!r}")
        self.reading, self.gamma = reading, positive("gamma", gamma)
        self.order, self.dim = int(positive("order", order)), int(positive("dim", dim))

    def setup(
        self, student_specs: Sequence[StageSpec], teacher_specs: Sequence[StageSpec], data_info: Mapping[str, int]
    ) -> None:
        """Makes the two embeddings, where they are needed."""
        width_s, width_t = widths("CCLoss", data_info)
        if self.reading == "difference":
            self.embed_student, self.embed_teacher = nn.Linear(width_s, self.dim), nn.Linear(width_t, self.dim)

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        given = the_teacher("CCLoss", teacher).features
        same_images(student.features, given)
        with full_precision(student.features, given) as (f_s, f_t):
            if self.reading == "kernel":
                return F.mse_loss(self._kernel(f_s), self._kernel(f_t))
            d = (self.embed_student(f_s) - self.embed_teacher(f_t)).abs()
            # sum_(i != j) d_i . d_j without a matrix of pairs.
            return (d.sum(0).square().sum() - d.square().sum()) / max(len(d) * (len(d) - 1), 1)

    def _kernel(self, features: Tensor) -> Tensor:
        unit = F.normalize(features, dim=1)
        products = unit @ unit.T
        scale = 2 * self.gamma
        terms = [scale**p / math.factorial(p) * products**p for p in range(self.order + 1)]
        return math.exp(-scale) * sum(terms)  # type: ignore[return-value]
