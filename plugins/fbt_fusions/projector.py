"""What L2G and its relatives share: a patch embedding, then one block that tells them apart (arXiv 2410.12342)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fbt_plugins import FromMap, Splice, StageSpec, ToMap
from fbt_plugins.authoring import ends


class PatchEmbedding(nn.Module):
    """A map of one grid and width as a map of another: a convolution whose kernel is its stride.

    Where the grids don't divide, the map is first interpolated to the nearest size that does.

    Args:
        source: what arrives.
        target: what is wanted; only its grid and width matter.
    """

    def __init__(self, source: StageSpec, target: StageSpec) -> None:
        super().__init__()
        (height, width), (h, w) = source.grid, target.grid
        kernel = (max(1, round(height / h)), max(1, round(width / w)))
        self.size = (h * kernel[0], w * kernel[1])
        self.proj = nn.Conv2d(source.channels, target.channels, kernel, stride=kernel)
        self.norm = nn.LayerNorm(target.channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, h, w, c)."""
        if x.shape[2:] != self.size:
            wide = torch.promote_types(x.dtype, torch.float32)  # CPUs cannot do it in half precision
            x = F.interpolate(x.to(wide), self.size, mode="bilinear", align_corners=False, antialias=True).to(x.dtype)
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class ProjectorFusion:
    """A patch embedding and blocks of one kind at every junction; subclasses say which kind."""

    depth = 1
    """How many blocks, one after another."""

    def block(self, target: StageSpec, number: int) -> nn.Module:
        """What follows the patch embedding: maps (N, h, w, c) of the target's grid and width to such maps.

        Args:
            target: what the next stage takes.
            number: which of the junction's blocks, from 0.

        Raises:
            ValueError: if there is no such block for this grid and width.
        """
        raise NotImplementedError

    def build(
        self, student_specs: Sequence[StageSpec], teacher_specs: Sequence[StageSpec], splice: Splice
    ) -> nn.ModuleDict:
        """One projector per junction; what stage j takes is what stage j - 1 of its model gives."""
        stages = {"S": len(student_specs), "T": len(teacher_specs)}
        return nn.ModuleDict(
            {
                j.name: self._projector(*ends(j, student_specs, teacher_specs), into_head=j.first > stages[j.taker])
                for j in splice.junctions
            }
        )

    def _projector(self, source: StageSpec, target: StageSpec, into_head: bool) -> nn.Sequential:
        blocks = [self.block(target, number) for number in range(self.depth)]
        return nn.Sequential(ToMap(source), PatchEmbedding(source, target), *blocks, FromMap(target, pooled=into_head))


class OnTokens(nn.Module):
    """A block that takes tokens (N, L, c), on maps (N, h, w, c)."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x.flatten(1, 2)).unflatten(1, x.shape[1:3])


class OnChannelsFirst(nn.Module):
    """A block that takes maps (N, c, h, w), on maps (N, h, w, c)."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def heads_for(width: int, head_dim: int) -> int:
    """The number of attention heads that divides a width and makes each nearest to ``head_dim`` wide."""
    return min((h for h in range(1, width + 1) if width % h == 0), key=lambda h: abs(width / h - head_dim))


def check_positive(**values: float) -> None:
    """Refuses an argument that is not above 0.

    Raises:
        ValueError: naming it.
    """
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be {'finite' if value > 0 else 'positive'}, not {value}")
