"""Losses that are none, and parameters that no loss reaches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..registry.registries import FUSIONS, LOSSES, PluginRegistry
from .loss_contract import out_of_reach, value_fault


def check_values(distiller: Any, losses: Mapping[str, Tensor]) -> None:
    """Looks at the losses of one step.

    Raises:
        PluginError: if a loss is anything but a scalar with a gradient, or parameters of a loss or a junction get none.
    """
    edges = [distiller.edges[name] for name in distiller.step.on]
    types, device = distiller.types, distiller.student_mean.device
    for name in {name for edge in edges for name in edge.types}:
        if wrong := value_fault(losses[name], device):
            raise LOSSES.fault(types[name], wrong)
    total = torch.stack([value.float() for value in losses.values()]).sum()
    # A fusion model that only gives stays as it was built, and so does what is off.
    taught = {edge.receiver for edge in edges} | {edge.giver for edge in edges if not edge.detach}
    parts: list[tuple[PluginRegistry, str, nn.Module]] = [
        (LOSSES, edge.value_name(slot), loss) for edge in edges for slot, loss in edge.losses.items()
    ]
    parts += [(FUSIONS, name, fusion.junctions) for name, fusion in distiller.fusions.items() if name in taught]
    for registry, name, part in parts:
        if total.requires_grad and (left := out_of_reach(total, part)):
            raise registry.fault(types[name], f"has a parameter {left[0]!r} that no loss's gradient reaches")


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
