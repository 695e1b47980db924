"""RKD: distances and angles between images instead of the features themselves."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fbt_plugins import Batch, Knowledge

from .numerics import full_precision, not_negative, same_images, the_teacher


class RKDLoss(nn.Module):
    """``distance_weight L_D + angle_weight L_A`` on features (Park et al., arXiv 1904.05068, sections 3.2.1-2).

    L_D is the Huber loss of the distances of all pairs of images, each model's divided by their mean; L_A is that of
    the cosines of the angles of all triples. Both are means over all N^2 pairs and N^3 triples, equal
    images among them, as in the released code. Widths may differ; turning, moving and scaling features changes nothing.
    Images of one process's batch are compared; memory grows with N^3 (0.5 GB a model at N = 512).

    Args:
        distance_weight: of L_D.
        angle_weight: of L_A; twice the other, as in the paper, and both as large as in comparisons since RepDistiller
            (arXiv 1910.10699).

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
