"""L2G with a ViT block (arXiv 2010.11929) in place of its Swin block: all positions see all others."""

from __future__ import annotations

from timm.models.vision_transformer import Block
from torch import nn

from fbt_plugins import StageSpec

from .projector import OnTokens, ProjectorFusion, check_positive, heads_for


class AttentionL2G(ProjectorFusion):
    """Patch embedding + global attention block at every junction.

    On a grid that is one window of L2G's this differs from L2G by the relative position bias alone, which a ViT block
    does not have. Attention costs grow with the square of the grid's positions.

    Args:
        head_dim: width of one attention head; the number of heads is the nearest that divides the width.
        mlp_ratio: hidden width of the block's MLP, relative to its width.
        depth: how many blocks.
    """

    def __init__(self, head_dim: int = 32, mlp_ratio: float = 4.0, depth: int = 1) -> None:
        check_positive(head_dim=head_dim, mlp_ratio=mlp_ratio, depth=depth)
        self.head_dim, self.mlp_ratio, self.depth = head_dim, mlp_ratio, depth

    def block(self, target: StageSpec, number: int) -> nn.Module:
        heads = heads_for(target.channels, self.head_dim)
        return OnTokens(Block(target.channels, heads, mlp_ratio=self.mlp_ratio, qkv_bias=True))
