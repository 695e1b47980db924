"""L2G, the local-to-global projector of FBT (arXiv 2410.12342): a patch embedding, then a Swin block; and its variants.

A variant has another block in the place of the Swin block: none, a ConvNeXt block (positions see their neighbours), a
ViT block (all positions see all others), or an MLP-Mixer block (global, by weights of each position).
"""

from __future__ import annotations

import math

from timm.models.convnext import ConvNeXtBlock
from timm.models.mlp_mixer import MixerBlock
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.vision_transformer import Block
from torch import nn

from fbt_plugins import StageSpec

from .projector import OnChannelsFirst, OnTokens, ProjectorFusion, check_positive, heads_for


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


class PatchEmbedOnly(ProjectorFusion):
    """A patch embedding alone at every junction: L2G without "MSA", as in the paper's ablations.

    Positions see no others than those of their own patch.

    With the splice ``C1-3+Mhead`` it is what we take row A of the paper's ablations to be ("without MSA and S_m^4").
    """

    def block(self, target: StageSpec, number: int) -> nn.Module:
        return nn.Identity()


class ConvL2G(ProjectorFusion):
    """Patch embedding + ConvNeXt block (arXiv 2201.03545), without layer scale, at every junction.

    Args:
        kernel_size: size of the depthwise convolution; odd.
        mlp_ratio: hidden width of the block's MLP, relative to its width.
        depth: how many blocks.
    """

    def __init__(self, kernel_size: int = 7, mlp_ratio: float = 4.0, depth: int = 1) -> None:
        check_positive(kernel_size=kernel_size, mlp_ratio=mlp_ratio, depth=depth)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, not {kernel_size}")
        self.kernel_size, self.mlp_ratio, self.depth = kernel_size, mlp_ratio, depth

    def block(self, target: StageSpec, number: int) -> nn.Module:
        # Layer scale would start at 1e-6: a block that adds nothing in runs that are not long.
        block = ConvNeXtBlock(
            target.channels, kernel_size=self.kernel_size, mlp_ratio=self.mlp_ratio, ls_init_value=None
        )
        return OnChannelsFirst(block)


class AttentionL2G(ProjectorFusion):
    """Patch embedding + ViT block with global attention (arXiv 2010.11929) at every junction.

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


class MixerL2G(ProjectorFusion):
    """Patch embedding + MLP-Mixer block (arXiv 2105.01601) at every junction.

    Args:
        token_ratio: hidden width of the MLP across positions, relative to the block's width.
        mlp_ratio: hidden width of the MLP across channels, relative to the block's width.
        depth: how many blocks.
    """

    def __init__(self, token_ratio: float = 0.5, mlp_ratio: float = 4.0, depth: int = 1) -> None:
        check_positive(token_ratio=token_ratio, mlp_ratio=mlp_ratio, depth=depth)
        self.token_ratio, self.mlp_ratio, self.depth = token_ratio, mlp_ratio, depth

    def block(self, target: StageSpec, number: int) -> nn.Module:
        return OnTokens(
            MixerBlock(target.channels, math.prod(target.grid), mlp_ratio=(self.token_ratio, self.mlp_ratio))
        )
