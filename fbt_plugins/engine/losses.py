"""The losses of a log interval: kept on the device, read once."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.dist import get_world_size
from torch import Tensor
from torch import distributed as dist

from ..edge import StepLosses

GRADIENT = "grad_norm"


class LossWindow:
    """A row per iteration since the last record: every loss, and the norm of the gradients where that is known.

    Writing a row does not wait for the device; reading them does.

    Args:
        length: rows that fit, the iterations of a log interval.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.names: tuple[str, ...] = ()
        self.rows = 0
        self._values = torch.empty(0)

    def add(self, losses: StepLosses, grad_norm: Tensor | None) -> None:
        """Keeps one iteration's losses."""
        if losses.names != self.names:
            self._start(losses.names, losses.stacked.device)
        row = self._values[self.rows]
        row[:-1].copy_(losses.stacked)
        if grad_norm is not None:
            row[-1].copy_(grad_norm)
        self.rows += 1

    def read(self) -> dict[str, list[float]]:
        """A column per loss, the mean over all processes; waits for the device."""
        values = self._values[: self.rows]
        if get_world_size() > 1:
            values = values.clone()
            dist.all_reduce(values)
            values /= get_world_size()
        columns = values.T.tolist() or [[]] * (len(self.names) + 1)
        return dict(zip((*self.names, GRADIENT), columns, strict=True))

    def clear(self) -> None:
        """Begins the next interval."""
        self.rows = 0
        self._values.zero_()

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs."""
        return {"names": list(self.names), "values": self._values[: self.rows].cpu().clone()}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Goes on with an interval."""
        if state["names"]:
            self._start(tuple(state["names"]), device)
            self.rows = min(len(state["values"]), self.length)
            self._values[: self.rows].copy_(state["values"][: self.rows])

    def _start(self, names: tuple[str, ...], device: torch.device) -> None:
        self.names, self.rows = names, 0
        self._values = torch.zeros(self.length, len(names) + 1, device=device)
