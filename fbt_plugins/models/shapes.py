"""What a model's stages and head give for images of one size, found by running a weightless copy on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import FBTError, PartError, nearest, text_of
from .census import FAMILIES, of_stages, take_census
from .image_sizes import grid_of, proportional
from .knowledge import Knowledge

LAYOUTS = ("NCHW", "NHWC", "NLC")


@dataclass(frozen=True)
class StageSpec:
    """The output of one stage.

    Attributes:
        layout: "NCHW", "NHWC" or "NLC" (tokens, prefix tokens first).
        channels: width.
        grid: (height, width) in positions.
        prefix_tokens: class, distillation and register tokens before the grid's; 0 in maps.
        family: "cnn", "attention", "mlp" or "hybrid".
        raster: whether the grid's positions come row by row; where they don't, nothing may reshape them to a map.
        order: (h * w,), which of the grid's tokens stands at each position, row by row; None where ``raster`` says all.
        prefix: (prefix_tokens, channels), the model's own start values for these tokens, if it has any.
    """

    layout: str
    channels: int
    grid: tuple[int, int]
    prefix_tokens: int = 0
    family: str = "cnn"
    raster: bool = True
    prefix: Tensor | None = field(default=None, compare=False, repr=False)
    order: Tensor | None = field(default=None, compare=False, repr=False)

    def sizes(self, batch: int) -> tuple[int, ...]:
        """Sizes of the output for a batch of images."""
        h, w = self.grid
        if self.layout == "NLC":
            return batch, self.prefix_tokens + h * w, self.channels
        return (batch, self.channels, h, w) if self.layout == "NCHW" else (batch, h, w, self.channels)

    def __str__(self) -> str:
        prefix = f" + {self.prefix_tokens} prefix tokens" if self.prefix_tokens else ""
        order = "" if self.raster else ", not row by row"
        return f"{self.layout} {self.channels} x {self.grid[0]}x{self.grid[1]}{prefix}{order}"


class Told:
    """What a model's builder tells of its stages, for their outputs do not show it; arguments of :class:`StagedModel`.

    Args:
        stages: how many there are.
        layout: of their outputs, one for all or one each.
        prefix_tokens: in their outputs, one number for all or one each.
        prefix: the model's own prefix tokens, where it has some.
        family: of the model; None reads it off what the stages compute.
        raster: whether tokens come row by row.
        order: (net, grid) -> which token stands at each position of such a grid, for tokens that don't.

    Raises:
        ValueError: if there is no such layout, family or number of tokens.
    """

    def __init__(
        self,
        stages: int,
        layout: str | Sequence[str],
        prefix_tokens: int | Sequence[int],
        prefix: Tensor | None,
        family: str | None,
        raster: bool,
        order: Callable[[nn.Module, tuple[int, int]], Tensor] | None,
    ) -> None:
        self.layouts = (layout,) * stages if isinstance(layout, str) else tuple(layout)
        self.prefix_tokens = (prefix_tokens,) * stages if isinstance(prefix_tokens, int) else tuple(prefix_tokens)
        if len(self.layouts) != stages or set(self.layouts) - set(LAYOUTS):
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, or {stages} of them, not {layout!r}")
        if len(self.prefix_tokens) != stages or not all(isinstance(n, int) and n >= 0 for n in self.prefix_tokens):
            raise ValueError(f"prefix_tokens must be a number of tokens, or {stages} of them, not {prefix_tokens!r}")
        self.prefix = None if prefix is None else prefix.detach().clone()
        if family not in (None, *FAMILIES):
            raise ValueError(f"family {family!r}{nearest(family, FAMILIES)}")
        self.family, self.raster, self.order = family, raster, order


class Shapes(NamedTuple):
    """What a model makes of images of one size; see the properties of :class:`StagedModel`."""

    specs: list[StageSpec]
    features: int
    classes: int
    macs: list[int]
    extra: frozenset[str]


def measure(model: Any, told: Told, size: tuple[int, int], shadow: Any) -> Shapes:
    """What a model makes of images of one size.

    Args:
        model: a :class:`StagedModel`.
        told: of its stages.
        size: (height, width) of the images.
        shadow: its weightless copy, which is run.

    Raises:
        FBTError: if the model cannot take images of that size.
        PartError: if a stage or the head gives something else than it must.
    """
    x: Any = torch.empty(1, model.in_chans, *size, device="meta")
    outputs, counted = [], []
    for i, part in enumerate((*shadow.stages, shadow.head), 1):
        if not isinstance(x, Tensor):
            what = f"has a stage {i - 1} that gives a {type(x).__name__}, not one tensor: cut where one passes"
            raise PartError(model.name, what)
        try:
            x, census = take_census(part, x, shadow.parameters())
        except Exception as error:
            where = "its head" if part is shadow.head else f"its stage {i}"
            raise FBTError(_refusal(model, size, where, error)) from error
        outputs.append(x)
        counted.append(census)
    *maps, known = outputs
    if not isinstance(known, Knowledge):
        what = f"has a head that gives a {type(known).__name__}, not Knowledge(features, logits)"
        raise PartError(model.name, what)
    if known.features.ndim != 2 or known.output.ndim != 2:
        logits = "no logits" if known.logits is None else f"logits {tuple(known.logits.shape)}"
        given = f"features {tuple(known.features.shape)} and {logits} for one image"
        raise PartError(model.name, f"has a head that gives {given}, not (N, D) and (N, classes)")
    families = of_stages([census.family for census in counted[:-1]])
    specs = [_spec(model, told, i, x, families[i], size) for i, x in enumerate(maps)]
    _check_prefix(model.name, told.prefix, specs)
    macs = [census.macs for census in counted]
    classes = 0 if known.logits is None else known.logits.shape[1]
    return Shapes(specs, known.features.shape[1], classes, macs, frozenset(known.extra))


def _refusal(model: Any, size: tuple[int, int], where: str, error: Exception) -> str:
    reason = f"{where}: {text_of(error) or type(error).__name__}"
    line = f"{model.name} cannot take images of {size[0]}x{size[1]} pixels ({reason})"
    if size == model.image_size:  # no other size would help
        return f"{line}, which is the size that it is said to be made for"
    return f"{line}; set input_size to resize them, or the model's own image size where it has such an argument"


def _spec(model: Any, told: Told, i: int, output: Tensor, family: str, size: tuple[int, int]) -> StageSpec:
    layout, prefix_tokens, shape = told.layouts[i], told.prefix_tokens[i], tuple(output.shape)
    stage = f"has a stage {i + 1}"
    if len(shape) != len(layout):
        raise PartError(model.name, f"{stage} that gives a tensor of shape {shape}, which is not {layout}")
    if layout == "NLC":
        grid, channels = _grid(model.name, stage, shape[1], prefix_tokens, size), shape[2]
    elif layout == "NHWC":
        grid, channels = (shape[1], shape[2]), shape[3]
    else:
        grid, channels = (shape[2], shape[3]), shape[1]
    other = {"NCHW": shape[1:3], "NHWC": shape[2:4]}.get(layout)
    if other and not proportional(grid, size) and proportional(other, size):
        correct = "NHWC" if layout == "NCHW" else "NCHW"
        what = f"{stage} of {_by(shape[1:])} per image: as {layout} a grid of {_by(grid)}"
        raise PartError(
            model.name, f"{what} of {_by(size)} pixels, as {correct} {_by(other)}; set layout to {correct!r}"
        )
    own = told.prefix
    prefix = own if own is not None and tuple(own.shape) == (prefix_tokens, channels) else None
    raster = told.raster or layout != "NLC"
    order = None if raster or told.order is None else told.order(model.net, grid)
    if order is not None and tuple(order.shape) != (grid[0] * grid[1],):
        raise PartError(model.name, f"has an order of {tuple(order.shape)} token numbers for a grid of {_by(grid)}")
    return StageSpec(layout, channels, grid, prefix_tokens, told.family or family, raster, prefix, order)


def _grid(name: str, stage: str, tokens: int, prefix_tokens: int, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a stage's tokens, which has the image's proportions."""
    if grid := grid_of(tokens - prefix_tokens, size):
        return grid
    what = f"{stage} of {tokens} tokens, which without {prefix_tokens} prefix tokens make no grid of the "
    what += f"proportions of {_by(size)} pixels"
    for count in range(min(tokens, 17)):
        if grid := grid_of(tokens - count, size):
            what += f"; prefix_tokens={count} would leave {_by(grid)}"
            break
    raise PartError(name, what)


def _check_prefix(name: str, prefix: Tensor | None, specs: Sequence[StageSpec]) -> None:
    """Start values that fit none of the stages would be missed by nobody."""
    with_tokens = [spec for spec in specs if spec.prefix_tokens]
    if prefix is not None and with_tokens and all(spec.prefix is None for spec in with_tokens):
        wanted = " or ".join(sorted({str((spec.prefix_tokens, spec.channels)) for spec in with_tokens}))
        raise PartError(name, f"has a prefix of shape {tuple(prefix.shape)}, not {wanted}")


def _by(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))
