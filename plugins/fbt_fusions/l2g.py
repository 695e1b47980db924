"""L2G, the local-to-global projector of FBT: a patch embedding, then a Swin block (arXiv 2410.12342)."""

from __future__ import annotations

from timm.models.swin_transformer import SwinTransformerBlock
from torch import nn

from fbt_plugins import StageSpec

from .projector import ProjectorFusion, check_positive, heads_for


class L2GFusion(ProjectorFusion):
    """FBT's fusion: patch embedding + Swin block at every junction.

    Of several blocks each second one has its windows shifted by half, as in Swin, where there is more than one window.

    Args:
        head_dim: width of one attention head; the number of heads is the nearest that divides the width.
        window: largest attention window in positions; a smaller grid is one window.
        mlp_ratio: hidden width of the block's MLP, relative to its width.
        depth: how many Swin blocks; FBT has one.
    """

    def __init__(self, head_dim: int = 32, window: int = 7, mlp_ratio: float = 4.0, depth: int = 1) -> None:
        check_positive(head_dim=head_dim, window=window, mlp_ratio=mlp_ratio, depth=depth)
        self.head_dim, self.window, self.mlp_ratio, self.depth = head_dim, window, mlp_ratio, depth

    def block(self, target: StageSpec, number: int) -> nn.Module:
        return SwinTransformerBlock(
            target.channels,
            target.grid,
            num_heads=heads_for(target.channels, self.head_dim),
            window_size=self.window,  # timm narrows it, and the shift, to a grid that is smaller
            shift_size=self.window // 2 if number % 2 else 0,
            mlp_ratio=self.mlp_ratio,
        )
