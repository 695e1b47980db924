"""Between a stage's own layout and maps, (N, C, H, W) or (N, H, W, C), in which junctions and losses work."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .shapes import StageSpec


class ToMap(nn.Module):
    """A stage's output as (N, C, H, W); prefix tokens are dropped.

    Raises:
        ConfigError: for tokens of which nobody says where they stand.
    """

    order: Tensor | None

    def __init__(self, spec: StageSpec) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("order", _order(spec), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.spec.layout == "NHWC":
            return x.permute(0, 3, 1, 2)
        if self.spec.layout == "NLC":
            x = x[:, self.spec.prefix_tokens :]
            x = x if self.order is None else x[:, self.order]
            return x.transpose(1, 2).unflatten(2, self.spec.grid)
        return x


class FromMap(nn.Module):
    """(N, H, W, C) as what a stage takes; prefix tokens are learned, started from the model's own where it has some.

    Args:
        spec: what is taken.
        pooled: whether the mean of all positions is added to the prefix tokens: a head may look at these alone, and
            no block is left in which they could look at the positions.

    Raises:
        ConfigError: as :class:`ToMap`.
    """

    order: Tensor | None

    def __init__(self, spec: StageSpec, pooled: bool = False) -> None:
        super().__init__()
        self.spec, self.pooled = spec, pooled
        self.prefix: nn.Parameter | None = None
        if spec.prefix_tokens:  # not zero, where a LayerNorm's gradient is a thousand times its usual size
            start = 0.02 * torch.randn(spec.prefix_tokens, spec.channels) if spec.prefix is None else spec.prefix
            self.prefix = nn.Parameter(start.detach().clone())
        order = _order(spec)
        self.register_buffer("order", None if order is None else order.argsort(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.spec.layout == "NCHW":
            return x.permute(0, 3, 1, 2).contiguous()
        if self.spec.layout == "NLC":
            x = x.flatten(1, 2)
            x = x if self.order is None else x[:, self.order]
            if self.prefix is not None:
                prefix = self.prefix.to(x.dtype).expand(len(x), -1, -1)
                x = torch.cat([prefix + x.mean(1, keepdim=True) if self.pooled else prefix, x], dim=1)
        return x


def _order(spec: StageSpec) -> Tensor | None:
    if spec.raster or spec.order is not None:
        return spec.order
    raise ConfigError("the tokens come in an order of the model's own; a StageSpec that has this order would do")
