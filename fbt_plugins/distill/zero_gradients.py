"""Parameters that a step does not run, and yet must have a gradient: for DDP, and for a graph that stays the same."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def with_idle(x: Tensor, idle: Iterable[nn.Module]) -> Tensor:
    """A tensor as it is; behind it, the parameters of modules that had no part in it get zeros as their gradients."""
    parameters = [p for module in idle for p in module.parameters() if p.requires_grad]
    if not parameters or not torch.is_grad_enabled():
        return x
    reached: Tensor = _Reached.apply(x, *parameters)
    return reached


class _Reached(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient, *map(torch.zeros_like, ctx.saved_tensors)
