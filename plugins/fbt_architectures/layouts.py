"""What the sizes of a tensor mean: a map with channels first or last, or tokens with some before the grid's."""

from __future__ import annotations

from collections.abc import Container
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fbt_plugins.authoring import Shortened, TokenGrid, meta_copy, proportional

from .traced import Image

_PREFIX = 16  # more tokens than this before the grid's are taken for another grid


class Shape(NamedTuple):
    """A stage's output, as far as its sizes tell.

    Attributes:
        layout: "NCHW", "NHWC" or "NLC".
        channels: width.
        grid: (height, width) in positions.
        prefix_tokens: tokens before the grid's.
        behind: they stand behind the grid's, and a stage gives them before.
    """

    layout: str
    channels: int
    grid: tuple[int, int]
    prefix_tokens: int = 0
    behind: bool = False


def read_shape(sizes: tuple[int, ...], image: Image, net: nn.Module, name: str) -> Shape | None:
    """Reads the sizes of one image's share of a tensor; the grid has the image's proportions.

    Args:
        sizes: two (tokens) or three (a map).
        image: (C, H, W).
        net: the network; where the sizes leave both layouts open, what it does with the tensor decides.
        name: of the module that gives the tensor.

    Returns:
        None where it is neither, or remains open.
    """
    if len(sizes) == 2:
        rows = token_grids(sizes[0], image, {0, getattr(net, "num_prefix_tokens", 0)})
        best = next((row for row in rows if row.prefix_tokens <= _PREFIX), None)
        return None if best is None else Shape("NLC", sizes[1], best.grid, best.prefix_tokens)
    if len(sizes) != 3:
        return None
    options = []
    if proportional(sizes[1:], image[1:]):
        options.append(Shape("NCHW", sizes[0], (sizes[1], sizes[2])))
    if proportional(sizes[:2], image[1:]):
        options.append(Shape("NHWC", sizes[2], (sizes[0], sizes[1])))
    if len(options) == 2:
        used = _layout_by_use(net, image, name, sizes)
        options = [option for option in options if option.layout == used]
    return options[0] if len(options) == 1 else None


def token_grids(length: int, image: Image, known: Container[object] = (0,)) -> list[TokenGrid]:
    """How so many tokens may be a grid of the image's proportions and some before or behind it, the likeliest first.

    That is the fewest more than the grid's, but rather none or as many as the network says, which may end a stage
    later. Where two grids are left open (9 tokens: 3x3, or 2x2 and 5 more), the stride divides the image.
    """
    height, width = image[1:]
    found: dict[TokenGrid, tuple[bool, bool, int, bool]] = {}
    for stride in range(1, min(height, width) + 1):
        for h, w in {(height // stride, width // stride), (-(-height // stride), -(-width // stride))}:
            if 0 < h * w <= length:
                more, uneven = length - h * w, bool(height % stride or width % stride)
                for behind in (False, True) if more else (False,):
                    rank = (more not in known, uneven, more, behind)
                    grid = TokenGrid((h, w), more, behind)
                    found[grid] = min(rank, found.get(grid, rank))
    return sorted(found, key=found.__getitem__)


def _layout_by_use(net: nn.Module, image: Image, name: str, sizes: tuple[int, ...]) -> str | None:
    """The layout of a module's output, by its place in memory, or by the layers that give or take it as it is.

    A map that is a view of the other layout's memory betrays itself by its strides.
    """
    shadow = meta_copy(net).eval()
    outputs: list[Tensor] = []
    given: list[tuple[Tensor, str]] = []
    taken: list[tuple[Tensor, str]] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...], output: object) -> None:
        if isinstance(output, Tensor) and tuple(output.shape[1:]) == sizes:
            outputs.append(output)

    def watch(module: nn.Module, layout: str) -> None:
        module.register_forward_hook(lambda module, args, output: given.append((output, layout)))
        module.register_forward_pre_hook(lambda module, args: taken.append((args[0], layout)) if args else None)

    for module in shadow.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            watch(module, "NCHW")
        elif type(module) in (nn.Linear, nn.LayerNorm):
            watch(module, "NHWC")
    shadow.get_submodule(name).register_forward_hook(keep)
    # What it has shown before it fails on this device is enough.
    with torch.no_grad(), Shortened(), suppress(Exception):
        shadow(torch.empty(2, *image, device="meta"))
    for output in outputs:
        _, first, second, third = output.stride()
        if first < third < second:  # channels lie innermost, but are counted first
            return "NCHW"
        if second < first < third:  # a row's positions lie innermost, but are counted second
            return "NHWC"
        for x, layout in (*given, *taken):
            if x is output or x._base is output:  # it, or a view of it whose channels lie where its own do
                channels = x.stride(1 if layout == "NCHW" else 3)
                if channels in (first, third):
                    return "NCHW" if channels == first else "NHWC"
    return None
