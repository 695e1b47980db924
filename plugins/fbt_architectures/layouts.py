"""What the sizes of a tensor mean: a map with channels first or last, or tokens with some before the grid's."""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fbt_plugins.staged import meta_copy

from .traced import Image

_PREFIX = 16  # more tokens than this before the grid's are taken for another grid


class Shape(NamedTuple):
    """A stage's output, as far as its sizes tell.

    Attributes:
        layout: "NCHW", "NHWC" or "NLC".
        channels: width.
        grid: (height, width) in positions.
        prefix_tokens: tokens before the grid's.
    """

    layout: str
    channels: int
    grid: tuple[int, int]
    prefix_tokens: int = 0


def read_shape(sizes: tuple[int, ...], image: Image, net: nn.Module) -> Shape | None:
    """Reads the sizes of one image's share of a tensor; the grid has the image's proportions.

    Args:
        sizes: two (tokens) or three (a map).
        image: (C, H, W).
        net: the network; where the sizes leave both layouts open, its layers' own inputs of these sizes decide.

    Returns:
        None where it is neither, or remains open.
    """
    height, width = image[1:]
    if len(sizes) == 2:
        return _tokens(sizes, height, width)
    if len(sizes) != 3:
        return None
    options = []
    if _alike(sizes[1:], height, width):
        options.append(Shape("NCHW", sizes[0], (sizes[1], sizes[2])))
    if _alike(sizes[:2], height, width):
        options.append(Shape("NHWC", sizes[2], (sizes[0], sizes[1])))
    if len(options) == 2:
        seen = _layouts_by_size(net, image).get(sizes, set())
        options = [option for option in options if option.layout in seen]
    return options[0] if len(options) == 1 else None


def _alike(grid: tuple[int, ...], height: int, width: int) -> bool:
    """Whether a grid has the image's proportions, up to rounding where it is not square."""
    h, w = grid
    if h > height or w > width:
        return False
    return h == w if height == width else abs(h * width - w * height) <= max(height, width)


def _tokens(sizes: tuple[int, ...], height: int, width: int) -> Shape | None:
    length, channels = sizes
    best: Shape | None = None
    for stride in range(1, min(height, width) + 1):
        for h, w in {(height // stride, width // stride), (-(-height // stride), -(-width // stride))}:
            prefix = length - h * w
            if 0 <= prefix <= _PREFIX and (best is None or prefix < best.prefix_tokens):
                best = Shape("NLC", channels, (h, w), prefix)
    return best


def _layouts_by_size(net: nn.Module, image: Image) -> dict[tuple[int, ...], set[str]]:
    """In which layout the network's layers take and give maps, by their sizes per image."""
    shadow = meta_copy(net).eval()
    seen: dict[tuple[int, ...], set[str]] = {}

    def note(layout: str) -> object:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            for tensor in (*args, output):
                if isinstance(tensor, Tensor) and tensor.ndim == 4:
                    seen.setdefault(tuple(tensor.shape[1:]), set()).add(layout)

        return hook

    for module in shadow.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.register_forward_hook(note("NCHW"))  # type: ignore[arg-type]
        elif type(module) in (nn.Linear, nn.LayerNorm):
            module.register_forward_hook(note("NHWC"))  # type: ignore[arg-type]
    with torch.no_grad(), suppress(Exception):  # what it has shown before it fails on this device is enough
        shadow(torch.empty(1, *image, device="meta"))
    return seen
