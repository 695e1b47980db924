"""What crosses at cuts, in words of maps and tokens: read off its sizes, and tokens held against where patches land."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace

from torch import Tensor, nn

from fbt_plugins.authoring import find_tokens

from .layouts import Shape, read_shape, token_grids
from .traced import Crossing, Trace
from .traced_parts import compiled

Reader = Callable[[Trace, Sequence[Crossing]], "list[Shape | None]"]
"""Gives a shape for each cut of a trace; None where it is neither a map nor tokens of a grid, or remains open."""


def by_size(trace: Trace, cuts: Sequence[Crossing]) -> list[Shape | None]:
    """Shapes as far as sizes tell."""
    return [read_shape(cut.shape, trace.image, trace.net, cut.name) for cut in cuts]


def by_probe(trace: Trace, cuts: Sequence[Crossing]) -> list[Shape | None]:
    """Shapes of maps as far as sizes tell, and of tokens where changed patches of images are found at their place."""
    shapes = by_size(trace, cuts)
    rows = [i for i, cut in enumerate(cuts) if len(cut.shape) == 2 and cut.shape[0] > 1]
    if not rows:
        return shapes
    _, code = compiled(trace.reaching([cuts[i] for i in rows]))

    def run(net: nn.Module, images: Tensor) -> Sequence[Tensor]:
        return code(SimpleNamespace(net=net), images)  # type: ignore[arg-type,no-any-return]

    known = {0, getattr(trace.net, "num_prefix_tokens", 0)}
    readings = [[g for g in token_grids(cuts[i].shape[0], trace.image, known) if max(g.grid) > 1] for i in rows]
    for i, found in zip(rows, find_tokens(trace.net, run, readings, trace.image), strict=True):
        more = () if found is None else (found.grid, found.prefix_tokens, found.behind)
        shapes[i] = Shape("NLC", cuts[i].shape[1], *more) if more else None
    return shapes
