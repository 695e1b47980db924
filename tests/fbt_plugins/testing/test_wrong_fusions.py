"""What an honest author of a fusion gets wrong, each caught in words that name the fault; and what passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from caught import says
from torch import Tensor, nn

from fbt_plugins import FromMap, StageSpec, ToMap
from fbt_plugins.authoring import ends
from fbt_plugins.testing.checks import check_fusion


class Join(nn.Module):
    """Maps by a convolution and interpolation, with what is wrong as a function of the map, the join and its grids."""

    def __init__(
        self, source: StageSpec, target: StageSpec, does: Callable[[Tensor, Any], Tensor], head: bool, norm: bool
    ) -> None:
        super().__init__()
        self.target, self.does = target, does
        self.to_map, self.from_map = ToMap(source), FromMap(target, pooled=head)
        self.width = nn.Conv2d(source.channels, target.channels, 1)
        self.drop, self.norm = nn.Dropout(0.1), nn.BatchNorm2d(source.channels) if norm else None
        self.plain = [nn.Conv2d(target.channels, target.channels, 1)]

    def forward(self, x: Tensor) -> Tensor:
        x = self.width(self.does(self.to_map(x), self))
        x = F.interpolate(x, self.target.grid, mode="nearest")
        return self.from_map(x.permute(0, 2, 3, 1))


class Fusion:
    def __init__(self, does: Callable[[Tensor, Any], Tensor] = lambda x, join: x, **options: bool) -> None:
        self.does, self.raster, self.norm = does, options.get("raster", False), options.get("norm", False)

    def build(self, student_specs: Any, teacher_specs: Any, splice: Any) -> nn.ModuleDict:
        built = {}
        for junction in splice.junctions:
            source, target = ends(junction, student_specs, teacher_specs)
            if self.raster:  # what it never looked at
                source, target = (StageSpec(s.layout, s.channels, s.grid, s.prefix_tokens) for s in (source, target))
            head = junction.first > len(student_specs if junction.taker == "S" else teacher_specs)
            built[junction.name] = Join(source, target, self.does, head, self.norm)
        return nn.ModuleDict(built)


def swapped(x: Tensor, join: Any) -> Tensor:
    return x.transpose(2, 3)


def misread(x: Tensor, join: Any) -> Tensor:
    """Tokens of (h, w) unflattened to (w, h)."""
    return x.flatten(2).unflatten(2, (x.shape[3], x.shape[2]))


def normed(x: Tensor, join: Any) -> Tensor:
    return F.batch_norm(x, None, None, training=True)


def listed(x: Tensor, join: Any) -> Tensor:
    return x + join.plain[0](join.width(x)).mean((1, 2, 3), keepdim=True)


def made_in_forward(x: Tensor, join: Any) -> Tensor:
    if not hasattr(join, "gain"):
        join.gain = nn.Parameter(torch.ones(1))
    return x * join.gain


FUSIONS: dict[str, tuple[Callable[[Tensor, Any], Tensor], str]] = {
    "rolled": (lambda x, _: x.roll(1, 0), "mixes the images of a batch: in eval mode it gives something else"),
    "the mean of the batch": (lambda x, _: x - x.mean(0, keepdim=True), "mixes the images of a batch"),
    "statistics of the batch": (normed, "mixes the images of a batch"),
    "rolled in training": (
        lambda x, j: x.roll(1, 0) if j.training else x,
        "in train mode what it gives for one comes from",
    ),
    "one position": (lambda x, _: x[:, :, :1, :1].expand_as(x), "looks at 1 of the 16 positions that arrive"),
    "dropout": (
        lambda x, _: F.dropout(x, 0.1),
        "in eval mode it gives other values for the same input the second time",
    ),
    "in place": (lambda x, _: x.relu_(), "changes what arrives in place"),
    "swapped": (swapped, "takes what arrives with rows and columns swapped"),
    "misread": (misread, "takes what arrives with height and width of the grid swapped"),
    "upside down": (lambda x, _: x.flip(2), "from another place of what arrives (is it flipped or shifted?)"),
    "shifted": (lambda x, _: x.roll((x.shape[2] // 2, x.shape[3] // 2), (2, 3)), "is it flipped or shifted?"),
    "layers in a list": (listed, "none of its parameters: nothing trains or saves it; keep modules in nn.ModuleList"),
    "a parameter made in forward": (made_in_forward, "it makes tensors on the CPU, wherever it runs: use device="),
    "no gradient": (lambda x, _: x.detach(), "no gradient reaches what arrives"),
}


@pytest.mark.parametrize(("does", "reason"), FUSIONS.values(), ids=FUSIONS)
def test_a_wrong_fusion_is_caught(does: Callable[[Tensor, Any], Tensor], reason: str) -> None:
    says(reason, check_fusion, Fusion(does), splices=("S1-3+T4",))


def test_a_fusion_that_takes_all_tokens_to_come_row_by_row_is_caught() -> None:
    says("takes what arrives as if tokens came row by row", check_fusion, Fusion(raster=True), splices=("S1-3+T4",))


RIGHT: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "the nearest positions": lambda x, _: x,
    "a stride": lambda x, _: x[:, :, ::2, ::2],
    "dropout": lambda x, join: join.drop(x),
    "BatchNorm": lambda x, join: join.norm(x),
    "a mean": lambda x, _: x.mean((2, 3), keepdim=True).expand_as(x),
}


@pytest.mark.parametrize("does", RIGHT.values(), ids=RIGHT)
def test_a_right_fusion_passes(does: Callable[[Tensor, Any], Tensor]) -> None:
    check_fusion(Fusion(does, norm=does is RIGHT["BatchNorm"]), splices=("S1-3+T4", "S1-4+Thead"))


def test_a_fusion_may_refuse_what_it_cannot_join_but_not_everything() -> None:
    class MapsOnly(Fusion):
        kinds: tuple[str, ...] = ("NCHW",)

        def build(self, student_specs: Any, teacher_specs: Any, splice: Any) -> nn.ModuleDict:
            if {s.layout for s in (*student_specs, *teacher_specs)} - set(self.kinds):
                raise ValueError("maps only")
            return super().build(student_specs, teacher_specs, splice)

    with pytest.warns(UserWarning, match="MapsOnly refuses 15 of 16 pairs of models, for example .*: maps only"):
        check_fusion(MapsOnly(), splices=("S1-3+T4",))
    MapsOnly.kinds = ()
    says("MapsOnly refuses all that is tried", check_fusion, MapsOnly(), splices=("S1-3+T4",))
