"""The proof that a model's stages and head compute exactly what the untouched model computes."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import FBTError
from .weightless import whole_copy


class Split(Protocol):
    """A network and its cut: what of a :class:`StagedModel` the proof looks at."""

    name: str
    net: nn.Module
    in_chans: int

    @property
    def stages(self) -> nn.ModuleList: ...

    @property
    def head(self) -> nn.Module: ...

    def __call__(self, images: Tensor) -> Tensor: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def train(self, mode: bool = True) -> Any: ...

    def zero_grad(self, set_to_none: bool = True) -> None: ...


class SplitError(FBTError):
    """Stages and head are not the model they were cut from."""


@dataclass(frozen=True)
class SplitProof:
    """What was compared, bit for bit, between stages + head and the untouched model.

    Attributes:
        model: its name.
        image_size: (height, width) in pixels.
        batch_sizes: at which the outputs in eval mode were equal.
        gradients: number of parameters whose gradients in train mode were equal.
        buffers: number of buffers that were equal after the step.
        parameters: number of parameters, each of which is in exactly one stage or the head; a buffer may be in several
            where nothing ever changes it.
    """

    model: str
    image_size: tuple[int, int]
    batch_sizes: tuple[int, ...]
    gradients: int
    buffers: int
    parameters: int


def prove(model: Split, image_size: tuple[int, int], seed: int = 0) -> SplitProof:
    """Compares ``model.stages`` and ``model.head`` with ``model.net`` on a perturbed copy.

    The weights are perturbed because a zero-initialised gain would hide whatever stands behind it.

    Raises:
        SplitError: naming the first thing that differs.
    """
    model = whole_copy(model)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    generator = torch.Generator().manual_seed(seed)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    batch_sizes = (2, 3)

    model.train(False)
    _perturb(model, image_size, generator, device)
    for batch in batch_sizes:
        images = torch.randn(batch, model.in_chans, *image_size, generator=generator).to(device)
        with torch.no_grad():
            _equal(model, "logits in eval mode", model.net(images), model(images))

    images = torch.randn(4, model.in_chans, *image_size, generator=generator).to(device)
    before = {name: buffer.clone() for name, buffer in model.net.named_buffers()}
    expected = _train_step(model, model.net, images, seed)
    found = _train_step(model, model, images, seed)
    for name, tensor in expected.items():
        _equal(model, f"{name} in train mode", tensor, found[name])

    fixed = {name for name, buffer in before.items() if torch.equal(buffer, expected[f"buffer {name}"])}  # type: ignore[arg-type]
    count = _each_once(model, fixed)
    gradients = sum(1 for k, v in expected.items() if k.startswith("gradient of ") and v is not None)
    buffers = sum(1 for k in expected if k.startswith("buffer "))
    return SplitProof(model.name, image_size, batch_sizes, gradients, buffers, count)


NOISE = (0.1, 0.03, 0.01)
"""Deviations of what is added to weights; some networks overflow with the larger ones."""


def _perturb(model: Split, image_size: tuple[int, int], generator: torch.Generator, device: torch.device) -> None:
    """Adds noise to all weights, as much as leaves the network's outputs finite."""
    net = model.net
    tensors = [*net.parameters(), *net.buffers()]
    own = [tensor.detach().clone() for tensor in tensors]
    for noise in NOISE:
        with torch.no_grad():
            for tensor, value in zip(tensors, own, strict=True):
                tensor.copy_(value)
            for parameter in net.parameters():
                parameter.add_(noise * torch.randn(parameter.shape, generator=generator).to(parameter))
            for buffer in net.buffers():
                if buffer.is_floating_point():  # scaled, so that variances stay positive
                    buffer.mul_(1 + 0.1 * torch.rand(buffer.shape, generator=generator).to(buffer))
            images = torch.randn(2, model.in_chans, *image_size, generator=generator).to(device)
            if net(images).isfinite().all():
                return
    raise SplitError(f"{model.name}: its outputs are not finite, so nothing can be compared")


def _train_step(model: Split, run: Callable[[Tensor], Tensor], images: Tensor, seed: int) -> dict[str, Tensor | None]:
    """Logits, gradients and buffers of one forward and backward in train mode, after which the model is as before."""
    before = copy.deepcopy(dict(model.net.named_buffers()))
    model.train()
    model.zero_grad()
    with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
        torch.manual_seed(seed)
        logits = run(images)
        weights = torch.linspace(-1, 1, logits.numel(), device=logits.device, dtype=logits.dtype).reshape(logits.shape)
        (logits.log_softmax(-1) * weights).sum().backward()
    result: dict[str, Tensor | None] = {"logits": logits.detach()}
    result |= {f"gradient of {n}": p.grad for n, p in model.net.named_parameters()}
    result |= {f"buffer {n}": b.clone() for n, b in model.net.named_buffers()}
    model.zero_grad()
    with torch.no_grad():
        for name, buffer in model.net.named_buffers():
            buffer.copy_(before[name])
    return result


def _equal(model: Split, what: str, expected: Tensor | None, found: Tensor | None) -> None:
    if expected is None or found is None:
        if expected is not found:
            side = "stages and head never reach it" if found is None else "the model itself never reaches it"
            raise SplitError(f"{model.name}: {what}: {side}")
    elif expected.shape != found.shape:
        raise SplitError(f"{model.name}: {what}: shape {tuple(found.shape)}, expected {tuple(expected.shape)}")
    elif not torch.equal(expected, found):
        worst = (expected.double() - found.double()).abs().max().item()
        raise SplitError(f"{model.name}: {what} differ by up to {worst:.3g}")


def _each_once(model: Split, fixed: Set[str] = frozenset()) -> int:
    """Counts parameters; each, and each buffer that is not fixed, must be in exactly one of the model's parts."""
    for kind in ("parameters", "buffers"):
        reached = Counter(id(t) for part in (*model.stages, model.head) for t in getattr(part, kind)())
        for name, tensor in getattr(model.net, f"named_{kind}")():
            count = reached[id(tensor)]
            if count != 1 and not (count and kind == "buffers" and name in fixed):
                raise SplitError(f"{model.name}: {name} is in {count} of the stages and the head, not in one")
    return len(list(model.net.parameters()))
