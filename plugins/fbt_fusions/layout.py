"""Between a stage's own layout and the one that junctions work in: maps, (N, H, W, C) or (N, C, H, W)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fbt_plugins.staged import StageSpec


class ToMap(nn.Module):
    """A stage's output as (N, C, H, W); prefix tokens are dropped."""

    def __init__(self, spec: StageSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, x: Tensor) -> Tensor:
        if self.spec.layout == "NHWC":
            return x.permute(0, 3, 1, 2)
        if self.spec.layout == "NLC":
            return x[:, self.spec.prefix_tokens :].transpose(1, 2).unflatten(2, self.spec.grid)
        return x


class FromMap(nn.Module):
    """(N, H, W, C) as what a stage takes; prefix tokens are learned, started from the model's own where it has some."""

    def __init__(self, spec: StageSpec) -> None:
        super().__init__()
        self.spec = spec
        self.prefix: nn.Parameter | None = None
        if spec.prefix_tokens:
            start = torch.zeros(spec.prefix_tokens, spec.channels) if spec.prefix is None else spec.prefix
            self.prefix = nn.Parameter(start.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        if self.spec.layout == "NCHW":
            return x.permute(0, 3, 1, 2).contiguous()
        if self.spec.layout == "NLC":
            x = x.flatten(1, 2)
            if self.prefix is not None:
                x = torch.cat([self.prefix.to(x.dtype).expand(len(x), -1, -1), x], dim=1)
        return x
