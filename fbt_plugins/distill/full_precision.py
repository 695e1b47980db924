"""The precision that losses compute in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class full_precision:
    """Switches autocast off and gives the tensors in float32, or in float64 where they are that already::

    with full_precision(student.logits, teacher.logits) as (z_s, z_t):
        ...
    """

    def __init__(self, *tensors: Tensor) -> None:
        self._tensors = tensors
        device = "cpu" if tensors[0].is_meta else tensors[0].device.type  # the meta device has no autocast
        self._off = torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else None

    def __enter__(self) -> tuple[Tensor, ...]:
        if self._off is not None:
            self._off.__enter__()
        return tuple(t if t.dtype == torch.float64 else t.float() for t in self._tensors)

    def __exit__(self, *reason: Any) -> None:
        if self._off is not None:
            self._off.__exit__(*reason)
