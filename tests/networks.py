"""Networks that no declaration covers, and their cut by a trace."""

from __future__ import annotations

from typing import Any

import torch
from fbt_architectures.traced_cut import cut_by_trace
from torch import Tensor, nn

from fbt_plugins import StagedModel


class Net(nn.Module):
    """Four blocks that call each other in ``forward``; subclasses change one thing each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8 * 2**i, 16 * 2**i, 3, 2, 1), nn.BatchNorm2d(16 * 2**i), nn.ReLU())
            for i in range(3)
        )
        self.fc = nn.Linear(64, 5)

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))


def cut(net: nn.Module, stages: Any = None, **about: Any) -> StagedModel:
    torch.manual_seed(0)
    return cut_by_trace(net, stages, name="net", **({"image_size": (32, 32)} | about))


class Rotary(nn.Module):
    """Positions by number: of the tokens that it is given it reads the number, dtype and device."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("speeds", torch.rand(width))

    @torch.autocast("cpu", enabled=False)
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        angles = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)[:, None] @ self.speeds[None].to(x)
        return angles.sin(), angles.cos()


class Turned(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(width, 128), nn.Linear(128, width))

    def forward(self, x: Tensor, positions: tuple[Tensor, Tensor]) -> Tensor:
        return x + self.fc(x) * positions[0] + positions[1]


class Tokens(nn.Module):
    """A row of blocks that are given positions, in lists of some length."""

    def __init__(self, lists: int = 1, blocks: int = 4, rotary: bool = True) -> None:
        super().__init__()
        self.embed, self.rotary, self.fc = nn.Conv2d(3, 8, 8, 8), Rotary(8) if rotary else None, nn.Linear(8, 5)
        for i in range(lists):
            setattr(self, f"blocks{i}", nn.ModuleList(Turned(8) for _ in range(blocks)))
        self.count = lists

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        positions = (x.new_zeros(()), x.new_zeros(())) if self.rotary is None else self.rotary(x)
        for i in range(self.count):
            for block in getattr(self, f"blocks{i}"):
                x = block(x, positions)
        return self.fc(x.mean(1))
