"""The losses of a log interval: kept on the device, read once."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.dist import get_rank, get_world_size
from torch import Tensor
from torch import distributed as dist

from ...distill.loss_contract import StepLosses

GRADIENT = "grad_norm"


class LossWindow:
    """A row per iteration since the last record: every loss, and the norm of the gradients where that is known.

    A row is what the step left on the device; nothing is copied or computed before it is read.
    """

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self._rows: list[tuple[Tensor, Tensor | None]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, losses: StepLosses, grad_norm: Tensor | None) -> None:
        """Keeps one iteration's losses."""
        if losses.names != self.names:
            self.names, self._rows = losses.names, []
        self._rows.append((losses.stacked, grad_norm))

    def read(self) -> dict[str, list[float]]:
        """A column per loss, the mean over all processes; waits for the device."""
        if not self._rows:
            return {name: [] for name in (*self.names, GRADIENT)}
        values = self._values()
        if get_world_size() > 1:
            dist.all_reduce(values)
            values /= get_world_size()
        return dict(zip((*self.names, GRADIENT), values.T.tolist(), strict=True))

    def cut(self, rows: int) -> None:
        """Keeps the first rows only."""
        del self._rows[rows:]

    def _values(self) -> Tensor:
        """(rows, losses + 1) on the device; the norm is 0 where it is not known."""
        losses = torch.stack([row for row, _ in self._rows])
        zero = losses.new_zeros(())
        norms = torch.stack([zero if norm is None else norm.float() for _, norm in self._rows])
        return torch.cat([losses, norms[:, None]], 1)

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs: each process's values, (processes, rows, losses + 1); all of them call it."""
        if not self._rows:
            return {"names": list(self.names), "values": torch.empty(get_world_size(), 0, 1)}
        own = self._values()
        values = [torch.empty_like(own) for _ in range(get_world_size())]
        if len(values) == 1:
            values = [own]
        else:
            dist.all_gather(values, own)
        return {"names": list(self.names), "values": torch.stack(values).cpu()}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Goes on with an interval."""
        self.names = tuple(state["names"])
        values = state["values"]
        own = values[get_rank()] if values.ndim == 3 else values  # once, all processes had one window
        self._rows = [(row[:-1], row[-1]) for row in own.to(device)]
