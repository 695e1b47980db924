"""Where tokens stand on a grid: one patch of an image is changed, and one token must change most."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .weightless import whole_copy

_PROBES = 8
_ALL = 16
"""Grids of so many positions are probed at each."""

_NEAR, _EXACT, _APART = 0.75, 0.5, 0.5
"""Shares of the probes that must be found at their place or beside it, where strided layers may have moved them; at
their very place where beside it is nearly everywhere; and in places that differ where theirs do."""

_OUTSIDE = -(2**20)
"""Where a token stands that is not of a grid: near no place on it."""

_SCALES = (1.0, 0.3, 0.1)
"""What weights are multiplied by. With small ones blocks add little to what passes through a network, so that a token
is that of its own patch even where trained attention has mixed all of them."""


@dataclass(frozen=True)
class TokenGrid:
    """A reading of (N, L, C): tokens of a grid, row by row, and some that are not of it.

    Attributes:
        grid: (height, width) in positions.
        prefix_tokens: how many are not of the grid.
        behind: these stand behind the grid's, not before them.
        order: as in :class:`StageSpec`.
    """

    grid: tuple[int, int]
    prefix_tokens: int = 0
    behind: bool = False
    order: Tensor | None = None


@dataclass(frozen=True)
class Misplaced:
    """Tokens that do not stand where they are said to.

    Attributes:
        stage: its number, from 1.
        reason: what is said, and what is so.
        step: what to do.
    """

    stage: int
    reason: str
    step: str

    def __str__(self) -> str:
        return f"{self.reason}; {self.step}"


def find_tokens(
    net: nn.Module,
    run: Callable[[nn.Module, Tensor], Sequence[Tensor]],
    readings: Sequence[Sequence[TokenGrid]],
    image: tuple[int, int, int],
) -> list[TokenGrid | None]:
    """Which reading of a network's tensors of tokens is so.

    Args:
        net: the network; a copy of it is run.
        run: gives the tensors.
        readings: of each tensor, the likeliest first.
        image: (C, H, W).

    Returns:
        Of each tensor the first reading under which changed patches change the token at their place; None if none is.
        On a grid of few positions, where chance would find some, each must.
    """
    finest = max((r[0].grid for r in readings if r), key=lambda grid: grid[0] * grid[1], default=(1, 1))
    images, cells = _probes(image, finest, _ALL)
    net, found = whole_copy(net).eval(), dict[int, TokenGrid]()
    for _ in _scaled(net):
        with torch.no_grad():
            outputs = run(net, images.to(next(net.parameters(), images)))
        for i, output in enumerate(outputs):
            if i in found:
                continue
            changes = _changes(output)
            for reading in readings[i]:
                landed, expected = _landed(changes, reading), _places(cells, reading.grid)
                few = reading.grid[0] * reading.grid[1] < _ALL
                if torch.equal(landed, expected) if few else _in_place(landed, expected, reading.grid):
                    found[i] = reading
                    break
        if all(i in found or not rows for i, rows in enumerate(readings)):
            break
    return [found.get(i) for i in range(len(readings))]


def _scaled(net: nn.Module) -> Iterator[None]:
    """Sets a network's weights to their values, then to smaller ones."""
    own = [p.detach().clone() for p in net.parameters()]
    for scale in _SCALES:
        with torch.no_grad():
            for parameter, value in zip(net.parameters(), own, strict=True):
                if value.ndim > 1:
                    parameter.copy_(scale * value)
        yield


def probe_tokens(model: Any, specs: Sequence[Any], image_size: tuple[int, int]) -> tuple[int, Misplaced | None]:
    """Probes the order of the tokens of a model's stages.

    Args:
        model: a StagedModel; a copy of it is run.
        specs: of its stages, for that image size.
        image_size: (height, width) in pixels.

    Returns:
        In how many stages tokens were found where they are said to stand, and what is wrong with the first that is
        wrong. Maps are not probed, nor tokens that are said to have an order nobody knows. Where layers mix all
        tokens nothing is found: an author's word then stands, and a grid that was read off a number is refused.
    """
    placed = {i: s for i, s in enumerate(specs, 1) if s.layout == "NLC" and (s.raster or s.order is not None)}
    rows = {i: TokenGrid(s.grid, s.prefix_tokens, order=s.order) for i, s in placed.items() if max(s.grid) > 1}
    if not rows:
        return 0, None
    finest = max((s.grid for s in rows.values()), key=lambda grid: grid[0] * grid[1])
    images, cells = _probes((model.in_chans, *image_size), finest, _PROBES)
    model, open_rows, found = whole_copy(model).eval(), dict(rows), dict[int, tuple[Tensor, Tensor]]()
    for _ in _scaled(model):
        with torch.no_grad():
            outputs = model.stage_outputs(images.to(next(model.parameters(), images)), tuple(open_rows))
        for i, row in list(open_rows.items()):
            landed, expected = _landed(_changes(outputs[i]), row), _places(cells, row.grid)
            if _in_place(landed, expected, row.grid):
                del open_rows[i]
            else:
                found[i] = landed, expected
        if not open_rows:
            break
    wrong = [i for i in open_rows if model.guessed or _apart(*found[i])]
    problem = _problem(wrong[0], rows[wrong[0]], *found[wrong[0]]) if wrong else None
    return len(rows) - len(open_rows), problem


def _probes(image: tuple[int, int, int], grid: tuple[int, int], count: int) -> tuple[Tensor, list[tuple[float, float]]]:
    """An image, and copies of it with one patch changed; and where those patches are, as fractions of its sides."""
    generator = torch.Generator().manual_seed(0)
    (h, w), (height, width) = grid, image[1:]
    plain = torch.randn(image, generator=generator)
    images, cells = [plain], []
    for cell in torch.randperm(h * w, generator=generator)[: h * w if h * w <= _ALL else count].tolist():
        row, column = divmod(cell, w)
        changed = plain.clone()
        patch = changed[:, row * height // h : (row + 1) * height // h, column * width // w : (column + 1) * width // w]
        patch.copy_(torch.randn(patch.shape, generator=generator))
        images.append(changed)
        cells.append(((row + 0.5) / h, (column + 0.5) / w))
    return torch.stack(images), cells


def _changes(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """(probes, L, C), what each changed patch does to tokens; (probes,), which of them all it changes most."""
    change = (tokens[1:] - tokens[:1]).double()
    most = (change - change.mean(1, keepdim=True)).norm(dim=2).nan_to_num().argmax(1).cpu()
    return change, most


def _landed(changes: tuple[Tensor, Tensor], reading: TokenGrid) -> Tensor:
    """(probes,), the position on the grid that each changed patch has changed most; ``_OUTSIDE`` where that is none.

    What is not of the grid hears of a patch from all of it, so that the token of the patch itself must change more.
    """
    (h, w), first = reading.grid, 0 if reading.behind else reading.prefix_tokens
    change, most = changes
    outside = (most < first) | (most >= first + h * w)
    change = change[:, first : first + h * w]
    if reading.order is not None:
        change = change[:, reading.order]
    change = change - change.mean(1, keepdim=True)  # what uniform attention tells all tokens alike
    landed = change.norm(dim=2).nan_to_num().argmax(1).cpu()
    return landed.masked_fill(outside, _OUTSIDE)


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


def _problem(number: int, row: TokenGrid, landed: Tensor, expected: Tensor) -> Misplaced:
    h, w = row.grid
    given = "in the order given" if row.order is not None else "row by row"
    prefix = f" behind {row.prefix_tokens} prefix tokens" if row.prefix_tokens else ""
    claim = f"stage {number} is said to give the tokens of a {h}x{w} grid {given}{prefix}"
    if not _apart(landed, expected):
        what = "whatever patch of an image is changed, the same tokens change most"
    else:
        wrong = int((landed != expected).nonzero()[0])
        y, x = divmod(int(expected[wrong]), w)
        found = "none" if landed[wrong] == _OUTSIDE else f"token {int(landed[wrong]) + 1}"
        numbers = f"{found} of the grid and not {int(expected[wrong]) + 1}"
        what = f"the patch of row {y + 1} and column {x + 1} is {numbers}"
    mend = "cut before tokens are merged or moved, say with order= which stands where, or set raster=False"
    return Misplaced(number, f"{claim}, but {what}", f"{mend}: no map is made of them then")
