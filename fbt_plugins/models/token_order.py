"""Whether tokens stand where a StageSpec says: one patch of an image is changed, and one token must change most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .weightless import whole_copy

_PROBES = 8
_ALL = 16
"""Grids of so many positions are probed at each."""

_NEAR, _EXACT, _APART = 0.75, 0.5, 0.5
"""Shares of the probes that must be found at their place or beside it, where strided layers may have moved them; at
their very place where beside it is nearly everywhere; and in places that differ where theirs do."""

_SCALES = (1.0, 0.3, 0.1)
"""What weights are multiplied by. With small ones blocks add little to what passes through a network, so that a token
is that of its own patch even where trained attention has mixed all of them."""


def probe_tokens(model: Any, specs: Sequence[Any], image_size: tuple[int, int]) -> tuple[int, str]:
    """Probes the order of the tokens of a model's stages.

    Args:
        model: a StagedModel; a copy of it is run.
        specs: of its stages, for that image size.
        image_size: (height, width) in pixels.

    Returns:
        In how many stages tokens were found where they are said to stand, and what is wrong with the first that is
        wrong, or "". Maps are not probed, nor tokens that are said to have an order nobody knows. Where layers mix all
        tokens nothing is found: an author's word then stands, and a grid that was read off a number is refused.
    """
    rows = {i: s for i, s in enumerate(specs, 1) if s.layout == "NLC" and (s.raster or s.order is not None)}
    rows = {i: s for i, s in rows.items() if s.grid[0] * s.grid[1] > 1}
    if not rows:
        return 0, ""
    finest = max((s.grid for s in rows.values()), key=lambda grid: grid[0] * grid[1])
    images, cells = _probes(model, image_size, finest)
    model, open_rows, found = whole_copy(model).eval(), dict(rows), {}
    own = [p.detach().clone() for p in model.parameters()]
    for scale in _SCALES:
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), own, strict=True):
                if value.ndim > 1:
                    parameter.copy_(scale * value)
            outputs = model.stage_outputs(images.to(own[0] if own else images), tuple(open_rows))
        for i, spec in list(open_rows.items()):
            landed, expected = _landed(outputs[i], spec), _places(cells, spec.grid)
            if _in_place(landed, expected, spec.grid):
                del open_rows[i]
            else:
                found[i] = landed, expected
    wrong = [i for i in open_rows if model.guessed or _apart(*found[i])]
    problem = _problem(wrong[0], rows[wrong[0]], *found[wrong[0]]) if wrong else ""
    return len(rows) - len(open_rows), problem


def _probes(model: Any, image_size: tuple[int, int], grid: tuple[int, int]) -> tuple[Tensor, list[tuple[float, float]]]:
    """An image, and copies of it with one patch changed; and where those patches are, as fractions of its sides."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(model.in_chans, *image_size, generator=generator)
    (h, w), (height, width) = grid, image_size
    images, cells = [image], []
    for cell in torch.randperm(h * w, generator=generator)[: h * w if h * w <= _ALL else _PROBES].tolist():
        row, column = divmod(cell, w)
        changed = image.clone()
        patch = changed[:, row * height // h : (row + 1) * height // h, column * width // w : (column + 1) * width // w]
        patch.copy_(torch.randn(patch.shape, generator=generator))
        images.append(changed)
        cells.append(((row + 0.5) / h, (column + 0.5) / w))
    return torch.stack(images), cells


def _landed(tokens: Tensor, spec: Any) -> Tensor:
    """(probes,), the position on the grid that each changed patch has changed most."""
    change = (tokens[1:] - tokens[:1])[:, spec.prefix_tokens :].double()
    if spec.order is not None:
        change = change[:, spec.order]
    change = change - change.mean(1, keepdim=True)  # what uniform attention tells all tokens alike
    return change.norm(dim=2).nan_to_num().argmax(1).cpu()


def _places(cells: Sequence[tuple[float, float]], grid: tuple[int, int]) -> Tensor:
    """(probes,), the position that each patch has on a grid."""
    return torch.tensor([int(y * grid[0]) * grid[1] + int(x * grid[1]) for y, x in cells])


def _in_place(landed: Tensor, expected: Tensor, grid: tuple[int, int]) -> bool:
    width = grid[1]
    moved = landed - expected
    rows, columns = landed // width - expected // width, landed % width - expected % width
    near = ((rows.abs() <= 1) & (columns.abs() <= 1)).float().mean() >= _NEAR
    shifted = any((moved == by).float().mean() >= _NEAR for by in moved.unique() if by)  # one prefix token too few
    exact = grid[0] * width >= _ALL or (moved == 0).float().mean() >= _EXACT
    return bool(near and exact and not shifted and _apart(landed, expected))


def _apart(landed: Tensor, expected: Tensor) -> bool:
    return len(landed.unique()) >= _APART * len(expected.unique())


def _problem(number: int, spec: Any, landed: Tensor, expected: Tensor) -> str:
    h, w = spec.grid
    given = "in the order given" if spec.order is not None else "row by row"
    prefix = f" behind {spec.prefix_tokens} prefix tokens" if spec.prefix_tokens else ""
    claim = f"stage {number} is said to give the tokens of a {h}x{w} grid {given}{prefix}"
    if not _apart(landed, expected):
        what = "whatever patch of an image is changed, the same tokens change most"
    else:
        wrong = int((landed != expected).nonzero()[0])
        row, column = divmod(int(expected[wrong]), w)
        numbers = f"token {int(landed[wrong]) + 1} of the grid and not {int(expected[wrong]) + 1}"
        what = f"the patch of row {row + 1} and column {column + 1} is {numbers}"
    mend = "cut before tokens are merged or moved, say with order= which stands where, or set raster=False"
    return f"{claim}, but {what}; {mend}: no map is made of them then"
