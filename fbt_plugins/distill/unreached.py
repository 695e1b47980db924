"""Parameters that no loss reaches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def freeze_unreached(distiller: Any, batch: Mapping[str, Tensor]) -> list[str]:
    """See :meth:`Distiller.freeze_unreached`; gradients and buffers are put back after the step that finds them."""
    before = {name: buffer.clone() for name, buffer in distiller.named_buffers()}
    was_training = distiller.training
    distiller.train()
    distiller.parse_losses(distiller(**(batch or _blank(distiller)), mode="loss"))[0].backward()
    distiller.train(was_training)
    unreached = [name for name, p in distiller.named_parameters() if p.requires_grad and p.grad is None]
    for name, parameter in distiller.named_parameters():
        parameter.grad = None
        if name in unreached:
            parameter.requires_grad_(False)
    with torch.no_grad():
        for name, buffer in distiller.named_buffers():
            buffer.copy_(before[name])
    return unreached


def _blank(distiller: Any) -> dict[str, Tensor]:
    """As few images as the losses take, and labels."""
    count = max(2, *(0, *(least for edge in distiller.edges.values() for least in edge.min_batch.values())))
    device = distiller.student_mean.device
    return {
        "inputs": torch.zeros(count, distiller.student.in_chans, *distiller.image_size, device=device),
        "labels": torch.zeros(count, dtype=torch.long, device=device),
        "index": torch.arange(count, device=device),
    }
