"""Nothing at a junction: stages of equal shapes, taken as they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from fbt_plugins import Splice, StageSpec
from fbt_plugins.authoring import ends


class IdentityFusion:
    """Hands activations over unchanged, prefix tokens included: for models whose stages have equal shapes.

    What a fusion model gains by splicing alone is what it gains with this one.
    """

    def build(
        self, student_specs: Sequence[StageSpec], teacher_specs: Sequence[StageSpec], splice: Splice
    ) -> nn.ModuleDict:
        """An identity per junction.

        Raises:
            ValueError: with what differs, where a junction's ends are not the same; the framework adds both shapes.
        """
        for junction in splice.junctions:
            source, target = ends(junction, student_specs, teacher_specs)
            if different := _differences(source, target):
                raise ValueError(f"an identity needs equal ends; at {junction.name} {', '.join(different)} differ")
        return nn.ModuleDict({j.name: nn.Identity() for j in splice.junctions})


def _differences(source: StageSpec, target: StageSpec) -> list[str]:
    names = {"layout": "layouts", "channels": "widths", "grid": "grids", "prefix_tokens": "numbers of prefix tokens"}
    found = [plural for name, plural in names.items() if getattr(source, name) != getattr(target, name)]
    return found or ([] if _same_order(source, target) else ["orders of tokens"])


def _same_order(source: StageSpec, target: StageSpec) -> bool:
    """Whether tokens stand in the same order, as far as anyone knows it."""
    if source.raster and target.raster:
        return True
    if source.order is None or target.order is None:
        return False
    if source.order.is_meta or target.order.is_meta:  # models without weights have orders without values
        return source.raster == target.raster
    return torch.equal(source.order.cpu(), target.order.cpu())
