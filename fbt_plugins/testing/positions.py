"""Which positions of what arrives at a junction are seen by which of what it gives, and whether that is right.

Each position is changed in turn. A junction that is local shows where it takes things from; one in which all positions
see all others, such as attention, says nothing about places and is not judged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..models.shapes import StageSpec

CLOSER = 0.75
"""Another reading is right where what is seen is, on average, that much closer to it."""
LOCAL = 0.8
"""The same, in the average distance of two positions, makes a junction local."""
SEVERAL = 9
"""Positions: of fewer nobody can say that they are confused."""
NARROW = 0.5
"""What a position sees is, in that measure, so near to the middle of it, if it is a place."""
FAR = 0.7
"""And what is seen is so far from where it should be, in the same measure."""


def tokens_of(x: Tensor, spec: StageSpec) -> Tensor:
    """A stage's output as (N, positions, channels), without prefix tokens, in the stage's own order."""
    if spec.layout == "NLC":
        return x[:, spec.prefix_tokens :]
    return x.flatten(2).transpose(1, 2) if spec.layout == "NCHW" else x.flatten(1, 2)


@torch.no_grad()
def sight(module: nn.Module, x: Tensor, source: StageSpec, target: StageSpec) -> Tensor:
    """(source positions, target positions): how much each position that is given changes with each that arrives.

    Args:
        module: a junction in eval mode, which treats the images of a batch one by one.
        x: one image's activations.
        source, target: what arrives, and what is given.
    """
    count = math.prod(source.grid)
    changed = x.repeat(count, *(1 for _ in x.shape[1:]))
    numbers = torch.arange(count)
    noise = torch.randn(count, source.channels, generator=torch.Generator().manual_seed(2))
    tokens_of(changed, source)[numbers, numbers] += noise  # a view, in all layouts
    return (tokens_of(module(changed), target) - tokens_of(module(x), target)).abs().mean(2)


def used(seen: Tensor) -> int:
    """How many of the positions that arrive change anything."""
    return int((seen.amax(1) > 1e-6 * seen.max()).sum()) if bool(seen.any()) else 0


def fewest(source: StageSpec, target: StageSpec) -> int:
    """How many a junction must use at least: a quarter of what a choice of the nearest would."""
    return max(math.prod(map(min, source.grid, target.grid)) // 4, 1)


def misplaced(seen: Tensor, source: StageSpec, target: StageSpec) -> str | None:
    """How positions are confused, as the rest of a sentence whose subject is the junction; None if they are not.

    Args:
        seen: as :func:`sight` gives it.
        source, target: with the true order of the tokens, if anyone knows it.
    """
    share = seen / seen.sum(0, keepdim=True).clamp(min=1e-30)
    (right_s, *others_s), (right_t, *others_t) = (list(_readings(spec)) for spec in (source, target))
    chance = _distance(right_s[1], right_t[1]).mean()

    def off(places_s: Tensor, places_t: Tensor) -> Tensor:
        return (share * _distance(places_s, places_t)).sum(0).mean()

    right = off(right_s[1], right_t[1])
    wrong = [(off(places, right_t[1]), f"what arrives {how}") for how, places in others_s]
    wrong += [(off(right_s[1], places), f"what it gives {how}") for how, places in others_t]
    unknown = any(spec.layout == "NLC" and not spec.raster and spec.order is None for spec in (source, target))
    if unknown:  # no reading can be right
        best = min(right, *(value for value, _ in wrong))
        return "takes tokens in an order that nobody knows to come row by row" if best < LOCAL * chance else None
    if wrong:
        best, how = min(wrong, key=lambda pair: float(pair[0]))
        if best < CLOSER * right and best < LOCAL * chance and right > FAR * chance:
            return f"takes {how}"
    several = min(math.prod(source.grid), math.prod(target.grid)) >= SEVERAL
    if several and right > FAR * chance and _spread(share, right_s[1]) < NARROW * chance:
        return "takes what it gives at a position from another place of what arrives (is it flipped or shifted?)"
    return None


def _spread(share: Tensor, places: Tensor) -> Tensor:
    """The average distance of what a position sees from the middle of all that it sees."""
    middles = share.T @ places
    return (share * _distance(places, middles)).sum(0).mean()


def _readings(spec: StageSpec) -> Iterator[tuple[str, Tensor]]:
    """Places (positions, 2) of a stage's positions from 0 to 1: the right ones, then others that a mistake may take."""
    (h, w), tokens = spec.grid, spec.layout == "NLC"
    numbers = torch.arange(h * w)
    rows = _places(numbers // w, numbers % w, h, w)
    if tokens and spec.order is not None:
        where = spec.order.argsort()  # token -> position
        yield "", rows[where]
        yield "as if tokens came row by row, which StageSpec.order says they do not: use ToMap and FromMap", rows
        yield "in StageSpec.order the wrong way round: order[p] is the token at position p", rows[spec.order]
        return
    yield "", rows
    if min(h, w) > 1:
        yield "with rows and columns swapped", rows.flip(1)
        if tokens:
            yield "column by column, and tokens come row by row", _places(numbers % h, numbers // h, h, w)
        if h != w:
            yield "with height and width of the grid swapped", _places(numbers // h, numbers % h, w, h)


def _places(rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    return torch.stack([(rows + 0.5) / height, (columns + 0.5) / width], 1)


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b)
