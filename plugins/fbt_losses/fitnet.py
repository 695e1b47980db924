"""FitNets: the student's maps become the teacher's by a trained regressor."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fbt_plugins import StageSpec, ToMap

from .stage_loss import StageLoss, resized


class FitNetLoss(StageLoss):
    """Mean of ``(r(s) - t)^2`` over batch, channels and positions, summed over stages (arXiv 1412.6550, eq. 3).

    s and t are the student's and the teacher's maps of a stage, of any layout, without prefix tokens; s is interpolated
    to t's grid. r is a 1x1 convolution without bias, started as in OFA-KD's code (arXiv 2310.19444). The paper has half
    of a sum in the place of the mean, and trains one middle layer before everything else; the field trains all at once.

    Args:
        stages: the stages that are compared. All four with weight 1 is the FitNet of OFA-KD's comparisons;
            ``stages=(2,)`` with ``weight=100`` is mdistiller's, and nearer to the paper's middle layer.

    Raises:
        ValueError: if they are no stage numbers.
    """

    def __init__(self, stages: Sequence[int] = (1, 2, 3, 4)) -> None:
        super().__init__(stages)

    def compare(self, student: StageSpec, teacher: StageSpec, number: int) -> nn.Module:
        return _Hint(student, teacher)


class _Hint(nn.Module):
    def __init__(self, student: StageSpec, teacher: StageSpec) -> None:
        super().__init__()
        self.student, self.teacher = ToMap(student), ToMap(teacher)
        self.regressor = nn.Conv2d(student.channels, teacher.channels, 1, bias=False)
        nn.init.kaiming_normal_(self.regressor.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        target = self.teacher(y)
        return F.mse_loss(self.regressor(resized(self.student(x), target.shape[2:])), target)
