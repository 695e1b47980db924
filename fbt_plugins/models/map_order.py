"""Whether maps lie as their images do: a band of an image is changed, and the change must be found on that side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .weightless import whole_copy

_LEAST = 4
"""Maps of fewer rows or columns are not probed."""

_POSITIONS = 128
"""Maps of fewer positions are probed with several images: where a few numbers change most is much by chance."""

_FOLLOWS, _STAYS = 0.5, 0.2
"""How far, as a share of a map's side, the middle of a change moves where the map follows the image, and where it does
not: from one side's quarter to the other's it is 0.75 to 1 in real networks, and less than 0.1 across."""


def probe_maps(model: Any, specs: Sequence[Any], image_size: tuple[int, int]) -> str:
    """Probes the rows and columns of the maps of a model's stages.

    Args:
        model: a StagedModel; a copy of it is run.
        specs: of its stages, for that image size.
        image_size: (height, width) in pixels.

    Returns:
        What is wrong with the first that is wrong, or "". Nothing is said where layers mix all positions.
    """
    maps = {i: s for i, s in enumerate(specs, 1) if s.layout != "NLC" and min(s.grid) >= _LEAST}
    if not maps:
        return ""
    model = whole_copy(model).eval()
    draws = -(-_POSITIONS // min(spec.grid[0] * spec.grid[1] for spec in maps.values()))
    images = _bands(draws, model.in_chans, image_size).to(next(model.parameters(), torch.empty(())))
    with torch.no_grad():
        outputs = model.stage_outputs(images, tuple(maps))
    for i, spec in maps.items():
        if problem := _problem(outputs[i], spec.layout):
            name = f"stage {i} is said to give {spec}, but {problem}"
            return f"{name}; cut where it lies as the image does (permute(0, 2, 3, 1), not transpose(1, 3))"
    return ""


def _bands(draws: int, channels: int, size: tuple[int, int]) -> Tensor:
    """Some images, and copies of each with its upper, lower, left and right quarter changed: (5 * draws, C, H, W)."""
    generator = torch.Generator().manual_seed(0)
    height, width = size
    plain, other = torch.randn(2, draws, channels, height, width, generator=generator)
    images = plain.repeat(5, 1, 1, 1, 1)
    rows, columns = max(height // 4, 1), max(width // 4, 1)
    images[1, ..., :rows, :], images[2, ..., -rows:, :] = other[..., :rows, :], other[..., -rows:, :]
    images[3, ..., :columns], images[4, ..., -columns:] = other[..., :columns], other[..., -columns:]
    return images.flatten(0, 1)


def _problem(output: Tensor, layout: str) -> str:
    output = output.unflatten(0, (5, -1)).double()
    change = (output[1:] - output[:1]).square().sum(2 if layout == "NCHW" else 4).nan_to_num().mean(1)
    share = change / change.sum((1, 2), keepdim=True).clamp_min(1e-30)
    down, right = (_middle(share, dim) for dim in (1, 2))
    rows, across = down[1] - down[0], right[1] - right[0]  # what a change further down does
    along, columns = down[3] - down[2], right[3] - right[2]  # what one further right does
    if min(across, along) > _FOLLOWS and max(abs(rows), abs(columns)) < _STAYS:
        return "its rows and columns are swapped: what changes at the top of an image changes at the map's left"
    if max(rows, columns) < -_FOLLOWS:
        return "it is turned round: what changes at the top of an image changes at the map's bottom"
    if max(rows, columns) > _FOLLOWS and abs(min(rows, columns)) < _STAYS / 2:
        which = "rows" if rows > columns else "columns"
        return f"it follows the {which} of an image alone: its other side is none of the image's"
    return ""


def _middle(share: Tensor, dim: int) -> list[float]:
    """Where on a side each change lies in the mean, from 0 to 1."""
    places = torch.linspace(0, 1, share.shape[dim], dtype=share.dtype, device=share.device)
    return [float(value) for value in (share.sum(3 - dim) * places).sum(1)]
