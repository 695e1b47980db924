"""L2G with an MLP-Mixer block (arXiv 2105.01601) in place of its Swin block: global, by weights of each position."""

from __future__ import annotations

import math

from timm.models.mlp_mixer import MixerBlock
from torch import nn

from fbt_plugins import StageSpec

from .projector import OnTokens, ProjectorFusion, check_positive


class MixerL2G(ProjectorFusion):
    """Patch embedding + Mixer block at every junction.

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
