"""Sliced Wasserstein distance: what stands in two maps, wherever it stands."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fbt_plugins import StageSpec

from .stage_loss import StageLoss


class SlicedWassersteinLoss(StageLoss):
    """Squared sliced 2-Wasserstein distance between two sets of points, mean over images, summed over stages.

    The positions of an image's stage are the points, in channel space: (N, positions, channels), without prefix tokens;
    in which order they come does not matter. The student's are brought to the teacher's width C by a trained linear
    layer. With random unit directions theta (Bonneel et al., J. Math. Imaging Vis. 2015; arXiv 1902.00434, section 2)

    ``SW^2 = mean_theta W^2(x theta, y theta)``, ``W^2(a, b) = integral over q in [0, 1] of (F_a^-1(q) - F_b^-1(q))^2``.

    In one dimension W is exact, for sets of different sizes too: quantile functions of points are steps. Sets that are
    d apart have ``SW^2 = ||d||^2 / C`` on average, the scale of a mean squared error. As a loss of stages it is ours:
    an answer to FBT's open question of distribution-level alignment (arXiv 2410.12342).

    Args:
        stages: the stages that are compared.
        projections: number of directions; every step draws new ones from torch's own generator.

    Raises:
        ValueError: if there are no directions, or stages are no stage numbers.
    """

    stochastic = True

    def __init__(self, stages: Sequence[int] = (4,), projections: int = 128) -> None:
        super().__init__(stages)
        if projections < 1:
            raise ValueError(f"projections must be at least 1, not {projections}")
        self.projections = int(projections)

    def compare(self, student: StageSpec, teacher: StageSpec, number: int) -> nn.Module:
        return _Slices(student, teacher, self.projections)


class _Slices(nn.Module):
    rank_s: Tensor
    rank_t: Tensor
    share: Tensor

    def __init__(self, student: StageSpec, teacher: StageSpec, projections: int) -> None:
        super().__init__()
        self.student, self.teacher, self.projections = student, teacher, projections
        self.width = nn.Linear(student.channels, teacher.channels)
        n, m = student.grid[0] * student.grid[1], teacher.grid[0] * teacher.grid[1]
        self.whole = n * m
        # In units of 1 / nm, which are exact: where one of the two quantile functions steps.
        steps = sorted({*range(m, n * m + 1, m), *range(n, n * m + 1, n)})
        shares = [b - a for a, b in pairwise([0, *steps])]
        self.register_buffer("rank_s", torch.tensor([(s - 1) // m for s in steps]), persistent=False)
        self.register_buffer("rank_t", torch.tensor([(s - 1) // n for s in steps]), persistent=False)
        self.register_buffer("share", torch.tensor(shares), persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        points_s, points_t = self.width(_points(x, self.student)), _points(y, self.teacher)
        theta = torch.randn(points_t.shape[2], self.projections, dtype=y.dtype, device=y.device)
        a, b = ((p @ F.normalize(theta, dim=0)).sort(1).values for p in (points_s, points_t))
        gaps = a.index_select(1, self.rank_s) - b.index_select(1, self.rank_t)
        return (gaps.square() * self.share.to(gaps.dtype)[:, None]).sum(1).mean() / self.whole


def _points(x: Tensor, spec: StageSpec) -> Tensor:
    """A stage's output as (N, positions, channels), in whatever order."""
    if spec.layout == "NLC":
        return x[:, spec.prefix_tokens :]
    return x.flatten(2).transpose(1, 2) if spec.layout == "NCHW" else x.flatten(1, 2)
