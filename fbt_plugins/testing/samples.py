"""What the checks try fusions and losses on: outputs of small models' stages, and what such models know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..models.knowledge import Knowledge
from ..models.shapes import StageSpec

SPLICES = ("S1-3+T4", "T1-3+S4", "S1-2+T3-4", "S1+T2+S3-4", "S1-4+Thead")
CLASSES = 5
EXTRA = ("class_logits", "distillation_logits")

MODELS: dict[str, list[StageSpec]] = {
    "maps": [StageSpec("NCHW", c, (g, g)) for c, g in ((8, 16), (12, 8), (16, 4), (24, 2))],
    "maps, channels last": [
        StageSpec("NHWC", c, (h, w), family="attention") for c, h, w in ((8, 9, 12), (16, 5, 6), (24, 3, 3), (40, 1, 1))
    ],
    "tokens": [StageSpec("NLC", 20, (4, 6), family="mlp")] * 4,
    "tokens and two prefix tokens": [StageSpec("NLC", 12, (5, 5), 2, family="attention", prefix=torch.ones(2, 12))] * 4,
}
"""Outputs of four stages each, in every layout; no grid and no width fits another's."""


def _shuffled(seed: int, order: bool) -> list[StageSpec]:
    told = torch.randperm(24, generator=torch.Generator().manual_seed(seed)) if order else None
    return [StageSpec("NLC", 20, (4, 6), family="attention", raster=False, order=told)] * 4


ORDERED: dict[str, list[StageSpec]] = {
    "tokens in an order of their own": _shuffled(0, order=True),
    "tokens in an order that nobody knows": _shuffled(0, order=False),
}
"""Tokens that do not come row by row; a strategy may refuse them."""


def random_tensors(seed: int) -> Callable[..., Tensor]:
    """Makes tensors of given sizes, one after another, from a seed: standard normal numbers in float32."""
    generator = torch.Generator().manual_seed(seed)

    def make(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator)

    return make


def mapped(known: Knowledge, function: Callable[[Tensor], Tensor]) -> Knowledge:
    """The same knowledge with another tensor in each place."""
    stages = {i: function(x) for i, x in known.stages.items()}
    extra = {name: function(x) for name, x in known.extra.items()}
    logits = None if known.logits is None else function(known.logits)
    return Knowledge(function(known.features), logits, stages, extra)


def tensors(known: Knowledge) -> list[Tensor]:
    """All tensors of some knowledge."""
    logits = [] if known.logits is None else [known.logits]
    return [known.features, *logits, *known.stages.values(), *known.extra.values()]


def on_the_way(x: Tensor) -> Tensor:
    """The same values, computed: what arrives in a run is no leaf, and may be changed in place unnoticed by torch."""
    return x * 1


def weightless(specs: Sequence[StageSpec]) -> list[StageSpec]:
    """The specs of a model without weights, as ``--check`` builds it: their tensors are on the meta device."""

    def empty(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to("meta")

    return [replace(spec, prefix=empty(spec.prefix), order=empty(spec.order)) for spec in specs]
