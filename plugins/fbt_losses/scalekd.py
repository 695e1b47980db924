"""ScaleKD: maps alike as they are and without their mean, behind projectors whose queries are learned."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fbt_plugins import StageSpec, ToMap

from .numerics import not_negative, positive
from .stage_loss import StageLoss, stage_numbers


class ScaleKDLoss(StageLoss):
    """Dual-view feature mimicking of ScaleKD (Fan et al., NeurIPS 2024, arXiv 2411.06786), section 3.2, its views' sum:

    ``spatial |n(P_0 s) - n(t)|^2 / N + frequency |n(h(P_1 s)) - n(h(t))|^2 / N``

    summed over channels and positions. s and t are the maps (N, C, H, W) of a stage, without prefix tokens, n divides
    each position by its length over the channels, and ``h = IDCT(M DCT(.))`` leaves out the constant term of the
    cosine transform: that is each channel less its mean over the positions, which is how it is computed. P_0 and P_1
    are projectors of the student's map to the teacher's grid and width (:class:`QueryProjector`). What the teacher's
    last stage makes of the projected stage 3, ScaleKD's third part, is not in here.

    Args:
        stages: the stages that are compared.
        spatial: weight of the spatial view.
        frequency: weight of the frequency view.
        frequency_stages: those of ``stages`` that have the second term; the authors' weight at stage 4 is 0.
        softmax_scale: what similarities are multiplied by in the projectors' attention.
        head_dim: width of one head of that attention, where the teacher's width allows.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        stages: Sequence[int] = (3, 4),
        spatial: float = 0.08,
        frequency: float = 0.06,
        frequency_stages: Sequence[int] = (3,),
        softmax_scale: float = 5.0,
        head_dim: int = 128,
    ) -> None:
        super().__init__(stages)
        self.spatial, self.frequency = positive("spatial", spatial), not_negative("frequency", frequency)
        self.frequency_stages = stage_numbers(frequency_stages) if self.frequency else ()
        self.softmax_scale = positive("softmax_scale", softmax_scale)
        self.head_dim = int(positive("head_dim", head_dim))

    def compare(self, student: StageSpec, teacher: StageSpec, number: int) -> nn.Module:
        frequency = self.frequency if number in self.frequency_stages else 0.0
        return _Views(student, teacher, self.spatial, frequency, self.softmax_scale, self.head_dim)


class _Views(nn.Module):
    def __init__(
        self,
        student: StageSpec,
        teacher: StageSpec,
        spatial: float,
        frequency: float,
        softmax_scale: float,
        head_dim: int,
    ) -> None:
        super().__init__()
        self.teacher, self.spatial, self.frequency = ToMap(teacher), spatial, frequency
        self.projectors = nn.ModuleList(
            QueryProjector(student, teacher, softmax_scale, head_dim) for weight in (spatial, frequency) if weight
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        target = self.teacher(y).flatten(2).transpose(1, 2)
        value = self.spatial * _apart(self.projectors[0](x), target)
        if self.frequency:
            value = value + self.frequency * _apart(*(_no_mean(z) for z in (self.projectors[1](x), target)))
        return value


def _apart(a: Tensor, b: Tensor) -> Tensor:
    return (F.normalize(a, dim=2) - F.normalize(b, dim=2)).square().sum() / len(a)


def _no_mean(tokens: Tensor) -> Tensor:
    return tokens - tokens.mean(1, keepdim=True)


class QueryProjector(nn.Module):
    """ScaleKD's cross-attention projector: a learned query for each of the teacher's positions reads the student's map.

    As in the authors' code: keys and values are of the map behind a 3x3 convolution, BatchNorm and ReLU, plus a learned
    position embedding; queries are learned vectors behind a linear layer and ReLU. After the attention come a LayerNorm
    and an MLP four times as wide, with a shortcut around it. From the student's layout to (N, positions, C) of the
    teacher's.

    Args:
        student, teacher: what the two stages give.
        softmax_scale: similarities are multiplied by it, beside ``1 / sqrt(head_dim)``.
        head_dim: width of a head; where it does not divide C, the next wider one that does.

    Raises:
        ConfigError: for tokens of which nobody says where they stand.
    """

    def __init__(self, student: StageSpec, teacher: StageSpec, softmax_scale: float, head_dim: int) -> None:
        super().__init__()
        inputs, width = student.channels, teacher.channels
        self.to_map, self.positions = ToMap(student), teacher.grid[0] * teacher.grid[1]
        self.heads = next(h for h in range(max(width // head_dim, 1), 0, -1) if width % h == 0)
        self.scale = softmax_scale * (width // self.heads) ** -0.5
        self.read = nn.Sequential(nn.Conv2d(inputs, inputs, 3, padding=1), nn.BatchNorm2d(inputs), nn.ReLU())
        self.place = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, inputs, *student.grid), std=0.02))
        self.query = nn.Parameter(torch.randn(self.positions, width))
        self.ask = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.key, self.value = nn.Linear(inputs, width), nn.Linear(inputs, width)
        self.gather = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        tokens = (self.read(self.to_map(x)) + self.place).flatten(2).transpose(1, 2)
        queries = self.ask(self.query).expand(len(x), -1, -1)
        q, k, v = (
            z.unflatten(2, (self.heads, -1)).transpose(1, 2) for z in (queries, self.key(tokens), self.value(tokens))
        )
        found = F.scaled_dot_product_attention(q, k, v, scale=self.scale).transpose(1, 2).flatten(2)
        found = self.norm(self.gather(found))
        return found + self.mlp(found)
