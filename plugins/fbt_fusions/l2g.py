"""L2G, the local-to-global projector of FBT: a patch embedding, then a Swin block (arXiv 2410.12342)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn

from fbt_plugins.fusion import ends
from fbt_plugins.layout import FromMap, ToMap
from fbt_plugins.splice import Splice
from fbt_plugins.staged import StageSpec


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


class L2GFusion:
    """FBT's fusion: patch embedding + Swin block at every junction.

    Args:
        head_dim: width of one attention head; the number of heads is the nearest that divides the width.
        window: largest attention window in positions; a smaller grid is one window.
        mlp_ratio: hidden width of the block's MLP, relative to its width.
    """

    def __init__(self, head_dim: int = 32, window: int = 7, mlp_ratio: float = 4.0) -> None:
        if min(head_dim, window, mlp_ratio) <= 0:
            raise ValueError(f"head_dim, window and mlp_ratio must be positive, not {head_dim}, {window}, {mlp_ratio}")
        self.head_dim, self.window, self.mlp_ratio = head_dim, window, mlp_ratio

    def build(
        self, student_specs: Sequence[StageSpec], teacher_specs: Sequence[StageSpec], splice: Splice
    ) -> nn.ModuleDict:
        """One L2G per junction; what stage j takes is what stage j - 1 of its model gives."""
        stages = {"S": len(student_specs), "T": len(teacher_specs)}
        return nn.ModuleDict(
            {
                j.name: self._l2g(*ends(j, student_specs, teacher_specs), into_head=j.first > stages[j.taker])
                for j in splice.junctions
            }
        )

    def _l2g(self, source: StageSpec, target: StageSpec, into_head: bool) -> nn.Sequential:
        width = target.channels
        heads = min((h for h in range(1, width + 1) if width % h == 0), key=lambda h: abs(width / h - self.head_dim))
        block = SwinTransformerBlock(
            width,
            target.grid,
            num_heads=heads,
            window_size=self.window,  # timm narrows it to the grid where that is smaller
            mlp_ratio=self.mlp_ratio,
        )
        return nn.Sequential(ToMap(source), PatchEmbedding(source, target), block, FromMap(target, pooled=into_head))
