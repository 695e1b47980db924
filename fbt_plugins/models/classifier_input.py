"""Whether a head's features are what its classifier is given: the input of the last linear layer, with its gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_LINEAR = {F.linear: 1, torch.conv2d: 1, torch.conv1d: 1}
_PRODUCTS = {torch.matmul: 1, Tensor.matmul: 1, Tensor.__matmul__: 1, torch.mm: 1, Tensor.mm: 1, torch.addmm: 2}
"""Functions, and the place of the weight among their arguments; what comes before it is the input."""

_TOLERANCE = 1e-4


def features_problem(head: nn.Module, x: Tensor) -> tuple[bool, str]:
    """Holds ``Knowledge.features`` against the input of the last linear layer.

    Args:
        head: last stage's output -> Knowledge, in eval mode.
        x: what it is given.

    Returns:
        Whether there was such a layer, and what is wrong as the rest of a sentence, or "". Maps and tokens that a layer
        is given may be averaged, and so may the inputs of two classifiers that are averaged.
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad(), _LinearLayers() as ran:
        known = head(x.clone())
    assert known.logits is not None
    classes = known.logits.shape[1]
    rows: list[list[Tensor]] = []  # of the classifiers, the last first: what each may call its pooled input
    for given, channels, gives in reversed(ran.calls):
        if gives != classes:
            break
        rows.append(list(_pooled(given, channels, len(known.features))))
    if not rows or not rows[0]:
        return False, ""
    means = [[sum(several) / n for several in zip(*rows[:n], strict=False)] for n in range(2, len(rows) + 1)]
    candidates = [tensor for row in (*rows, *means) for tensor in row]
    found = known.features
    fitting = [c for c in candidates if c.shape == found.shape and _close(found, c)]
    if not fitting:
        return True, _difference(found, [c for c in candidates if c.shape == found.shape] or candidates)
    gradients = [_gradient(tensor, x, head) for tensor in fitting]
    own = _gradient(found, x, head)
    if own is None and None not in gradients:
        return True, "features are cut off from the gradient, and the input of the last linear layer is not"
    if not any(own is g or (own is not None and g is not None and _close(own, g)) for g in gradients):
        return True, "features have another gradient than the input of the last linear layer"
    return True, ""


class _LinearLayers(TorchFunctionMode):
    """Within it, ``calls`` collects the linear layers that run: input, its width, and the width of the output."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, int, int]] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        place = _LINEAR.get(function, _PRODUCTS.get(function))
        if place is not None and len(args) > place:
            given, weight = args[place - 1], args[place]
            if function in _LINEAR:
                self.calls.append((given, weight.shape[1], weight.shape[0]))
            elif isinstance(weight._base if weight._is_view() else weight, nn.Parameter) and weight.ndim == 2:
                self.calls.append((given, weight.shape[0], weight.shape[1]))
        return out


def _pooled(given: Tensor, channels: int, batch: int) -> Iterator[Tensor]:
    """What features (N, D) may be of a layer's input: it, its mean over all positions, one token, or all in one row."""
    if given.ndim == 2:
        yield given if len(given) == batch else given.unflatten(0, (batch, -1)).mean(1)
        return
    if given.ndim < 2 or len(given) != batch:
        return
    if given.ndim == 4:
        yield given.mean((2, 3)) if given.shape[1] == channels else given.mean((1, 2))
        yield given.flatten(1)
    else:
        yield given.mean(1) if given.shape[2] == channels else given.mean(2)
        yield from (given[:, i] for i in (0, -1) if given.ndim == 3)


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= _TOLERANCE * b.abs().max())


def _gradient(features: Tensor, x: Tensor, head: nn.Module) -> Tensor | None:
    """Of a weighted sum of features; ``torch.autograd.grad`` is refused by layers that are computed again."""
    if not features.requires_grad:
        return None
    weights = torch.linspace(-1, 1, features.numel()).to(features).reshape(features.shape)
    (features * weights).sum().backward(retain_graph=True)
    found, x.grad = x.grad, None
    head.zero_grad()
    return found


def _difference(found: Tensor, candidates: list[Tensor]) -> str:
    first = candidates[0]
    if first.shape != found.shape:
        shapes = f"{tuple(found.shape)}, and the input is {tuple(first.shape)}"
        return f"features are not the input of the last linear layer: they are {shapes}"
    worst = min(float((found - c).detach().abs().max()) for c in candidates)
    return f"features are not the input of the last linear layer: they differ by up to {worst:.3g}"
