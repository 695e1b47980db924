"""Gates: how far a giver is to be trusted in a step, read off what it and the teacher know."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch import distributed as dist

from ..models.knowledge import Knowledge


@torch.no_grad()
def agreement(giver: Knowledge, teacher: Knowledge) -> Tensor:
    """Part of the step's images for which the giver chooses the teacher's class, over all processes.

    Returns:
        A scalar in [0, 1] on the device, without gradient.
    """
    assert giver.logits is not None and teacher.logits is not None  # an edge looks before it takes a gate
    same = (giver.logits.argmax(1) == teacher.logits.argmax(1)).float().mean()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(same)
        same = same / dist.get_world_size()
    return same


GATES: dict[str, Callable[[Knowledge, Knowledge], Tensor]] = {"agreement": agreement}
"""What ``gate`` of an edge may be."""
