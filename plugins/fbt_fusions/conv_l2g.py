"""L2G with a ConvNeXt block (arXiv 2201.03545) in place of its Swin block: positions see their neighbours."""

from __future__ import annotations

from timm.models.convnext import ConvNeXtBlock
from torch import nn

from fbt_plugins import StageSpec

from .projector import OnChannelsFirst, ProjectorFusion, check_positive


class ConvL2G(ProjectorFusion):
    """Patch embedding + ConvNeXt block, without layer scale, at every junction.

    Args:
        kernel_size: of the depthwise convolution; odd.
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
