"""A small network with everything that can go wrong, and how it is cut."""

import torch
from torch import nn

from fbt_plugins.models.declaration import Declaration


class Toy(nn.Module):
    """A network with everything that can go wrong: a direct parameter, BatchNorm, dropout, an unused branch."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1))
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1), nn.BatchNorm2d(4)) for _ in range(4)))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5))
        self.fc = nn.Linear(4, 3)

    def gain(self, x: torch.Tensor) -> torch.Tensor:
        return x * (1 + self.scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.pool(self.blocks(self.gain(self.conv(x)))))


DECLARED = Declaration(stem="conv gain", units="blocks.*", cuts="blocks.0 blocks.1 blocks.2 blocks.3", head="pool fc")
