"""What kind of network a stage is, read off what it computes: convolutions, attention, or neither."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry

from .weightless import MetaMode, call

FAMILIES = ("cnn", "attention", "mlp", "hybrid")
CONVOLUTIONAL_SHARE = 0.3
"""Of a stage's arithmetic: a stage with attention that spends more than this on convolutions is a hybrid.

Transformers have some as well: patch embeddings that overlap, position encodings (PVTv2, Twins, XCiT: up to 0.2).
"""


class Census(MetaMode):
    """Counts what a stage computes while it runs; on the meta device it costs next to nothing.

    Attributes:
        macs: multiply-accumulate operations in all.
        convolutions: those of convolutions that look at neighbours.
        attention: how many products of two activations there were (queries by keys, weights by values).
        pooling: how many poolings with windows.
        layers: how many linear layers, 1x1 convolutions among them.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()
        self._weights = {p.untyped_storage()._cdata for p in parameters}
        self.macs = self.convolutions = self.attention = self.pooling = self.layers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = call(function, args, kwargs)
        packet = function.overloadpacket
        name = packet.__name__
        if packet in flop_registry:
            macs = flop_registry[packet](*args, **(kwargs or {}), out_val=out) // 2
            self.macs += macs
            if name in ("convolution", "_convolution"):
                self.convolutions += macs if _looks_at_neighbours(args[1], args[3]) else 0
                self.layers += max(args[1].shape[2:]) == 1
            elif name in ("mm", "addmm"):
                self.layers += 1
            elif name in ("bmm", "baddbmm"):
                two = self._of_two_activations(args[-2], args[-1], out)
                self.attention += two
                self.layers += not two
            elif "attention" in name:
                self.attention += 2
        elif "attention" in name:
            self.attention += 2
        elif "pool" in name and "adaptive" not in name:
            self.pooling += 1
        return out

    def _of_two_activations(self, a: Tensor, b: Tensor, out: Tensor) -> bool:
        """A product with a weight is a layer, and one with a single column or row pools all positions."""
        storages = {a.untyped_storage()._cdata, b.untyped_storage()._cdata}
        return not storages & self._weights and min(out.shape[-2:]) > 1

    @property
    def family(self) -> str | None:
        """Of the stage that ran; None for patch embeddings alone, which go with what comes behind them."""
        if self.attention:
            return "hybrid" if self.convolutions > CONVOLUTIONAL_SHARE * self.macs else "attention"
        if self.convolutions or self.pooling:
            return "cnn"
        return "mlp" if self.layers else None


def _looks_at_neighbours(weight: Tensor, stride: list[int]) -> bool:
    """Whether a convolution's windows overlap; patch embeddings and 1x1 convolutions don't."""
    return any(kernel > step for kernel, step in zip(weight.shape[2:], stride, strict=False) if kernel > 1)


def of_stages(found: Sequence[str | None]) -> list[str]:
    """The family of each stage, those that are none by themselves like what comes behind them."""
    families: list[str] = []
    for own in reversed(found):
        families.insert(0, own or (families[0] if families else "mlp"))
    return families


def of_model(stages: Iterable[str]) -> str:
    """The family of a model, by those of its stages: one for all, or a hybrid.

    Attention beside layers alone is attention: on a grid of one position a transformer has nothing to attend to.
    """
    found = set(stages)
    if found == {"attention", "mlp"}:
        return "attention"
    return found.pop() if len(found) == 1 else "hybrid"


def take_census(part: nn.Module, x: Tensor, parameters: Iterable[Tensor]) -> tuple[Tensor, Census]:
    """Runs a part of a network and counts.

    Args:
        part: a stage.
        x: what it is given.
        parameters: of the whole network.

    Returns:
        The part's output, and what was counted.
    """
    with torch.no_grad(), Census(parameters) as counted:
        return part(x), counted
