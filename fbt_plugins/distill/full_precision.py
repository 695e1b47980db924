"""The precision that losses compute in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def given(logits: Tensor | None) -> Tensor:
    """Logits that a loss takes.

    Raises:
        ValueError: if there are none.
    """
    if logits is None:
        raise ValueError(
            "it takes logits, and a model without a classifier has none; a loss's needs say 'logits': True"
        )
    return logits


class full_precision:
    """Switches autocast off and gives the tensors in float32, or in float64 where they are that already::

    with full_precision(student.logits, teacher.logits) as (z_s, z_t):
        ...

    Raises:
        ValueError: for the logits of a model that has none.
    """

    def __init__(self, *tensors: Tensor | None) -> None:
        self._tensors = tuple(map(given, tensors))
        first = self._tensors[0]
        device = "cpu" if first.is_meta else first.device.type  # the meta device has no autocast
        self._off = torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else None

    def __enter__(self) -> tuple[Tensor, ...]:
        if self._off is not None:
            self._off.__enter__()
        return tuple(t if t.dtype == torch.float64 else t.float() for t in self._tensors)

    def __exit__(self, *reason: Any) -> None:
        if self._off is not None:
            self._off.__exit__(*reason)
