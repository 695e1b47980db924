"""Sizes of images and of grids of positions: how they are written, and which grid has an image's proportions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from ..errors import is_count


def pixels(size: int | Sequence[int]) -> tuple[int, int]:
    """An image size as (height, width); one number is a square.

    Raises:
        ValueError: if it is neither.
    """
    pair = tuple(size) if isinstance(size, Iterable) else (size, size)
    if len(pair) != 2 or not all(map(is_count, pair)):
        raise ValueError(f"an image size is a number of pixels or (height, width), not {size!r}")
    return int(pair[0]), int(pair[1])


def resized(images: Tensor, size: tuple[int, int] | None, bounded: bool = True) -> Tensor:
    """Images (N, C, H, W) in [0, 1] (or not ``bounded``) at a model's ``input_size``; None leaves them as they are."""
    if size is None or images.shape[2:] == size:
        return images
    images = nn.functional.interpolate(images, size, mode="bicubic", antialias=True)
    return images.clamp(0, 1) if bounded else images


def proportional(grid: Sequence[int], image_size: tuple[int, int]) -> bool:
    """Whether a grid has an image's proportions, up to rounding where the image is not square."""
    (h, w), (height, width) = grid, image_size
    if h > height or w > width:
        return False
    return h == w if height == width else abs(h * width - w * height) <= max(height, width)


def grid_of(tokens: int, image_size: tuple[int, int]) -> tuple[int, int] | None:
    """The factors (h, w) of a token count whose ratio is nearest to the image's; None if none are proportional."""
    ratio = math.log(image_size[0] / image_size[1])
    pairs = [(h, tokens // h) for h in range(1, tokens + 1) if tokens % h == 0]
    fitting = [pair for pair in pairs if proportional(pair, image_size)]
    return min(fitting, key=lambda p: abs(math.log(p[0] / p[1]) - ratio), default=None)
