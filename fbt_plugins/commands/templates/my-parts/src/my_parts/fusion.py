"""Joins two models by a convolution on maps: as maps in, as whatever the next stage takes out."""

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from fbt_plugins import Splice, StageSpec


class Join(nn.Module):
    def __init__(self, source: StageSpec, target: StageSpec) -> None:
        super().__init__()
        if not (source.raster and target.raster):
            raise ValueError("MyPartsFusion needs tokens that come row by row")
        self.source, self.target = source, target
        self.width = nn.Conv2d(source.channels, target.channels, 3, padding=1)
        tokens = torch.zeros(target.prefix_tokens, target.channels)
        self.prefix = nn.Parameter(tokens) if target.prefix_tokens else None

    def forward(self, x: Tensor) -> Tensor:
        if self.source.layout == "NLC":
            x = x[:, self.source.prefix_tokens :].transpose(1, 2).unflatten(2, self.source.grid)
        elif self.source.layout == "NHWC":
            x = x.permute(0, 3, 1, 2)
        x = adaptive_avg_pool2d(self.width(x), self.target.grid)
        if self.target.layout == "NCHW":
            return x
        x = x.permute(0, 2, 3, 1)
        if self.target.layout == "NLC":
            x = x.flatten(1, 2)
        return x if self.prefix is None else torch.cat([self.prefix.to(x.dtype) + x.mean(1, keepdim=True), x], 1)


class MyPartsFusion:
    def build(self, student_specs: list[StageSpec], teacher_specs: list[StageSpec], splice: Splice) -> nn.ModuleDict:
        specs = {"S": student_specs, "T": teacher_specs}
        return nn.ModuleDict(
            {j.name: Join(specs[j.giver][j.last - 1], specs[j.taker][j.first - 2]) for j in splice.junctions}
        )
