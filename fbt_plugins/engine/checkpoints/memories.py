"""What losses remember between steps: only a resume needs it, so no best checkpoint and no student file has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...errors import FBTError

MEMORIES = "memories"
"""Where a checkpoint keeps them."""


def memories(distiller: Any) -> dict[str, Tensor]:
    """The non-persistent buffers of all losses (memory banks, running estimates), by name; equal in all processes."""
    losses = [(f"edges.{n}.{slot}", loss) for n, edge in distiller.edges.items() for slot, loss in edge.losses.items()]
    return {
        f"{where}.{name}": buffer
        for where, loss in losses
        for persistent in [loss.state_dict()]
        for name, buffer in loss.named_buffers()
        if name not in persistent
    }


def restore_memories(distiller: Any, saved: Mapping[str, Tensor]) -> None:
    """Gives losses back what they remembered.

    Raises:
        FBTError: if they would remember something else: other losses, or another data set.
    """
    own = memories(distiller)
    shapes, expected = ({name: tuple(x.shape) for name, x in side.items()} for side in (saved, own))
    if wrong := sorted({name for name, _ in shapes.items() ^ expected.items()}):
        here, there = expected.get(wrong[0]), shapes.get(wrong[0])
        raise FBTError(f"--resume: another run's: {wrong[0]} is {there} in the checkpoint, {here} here")
    for name, buffer in own.items():
        buffer.copy_(saved[name])
