"""L2G without its Swin block, the "MSA" of FBT's ablations (arXiv 2410.12342)."""

from __future__ import annotations

from torch import nn

from fbt_plugins import StageSpec

from .projector import ProjectorFusion


class PatchEmbedOnly(ProjectorFusion):
    """A patch embedding alone at every junction: positions see no others than those of their own patch.

    With the splice ``S1-3+Thead`` it is what we take row A of the paper's ablations to be ("without MSA and S_m^4").
    """

    def block(self, target: StageSpec, number: int) -> nn.Module:
        return nn.Identity()
