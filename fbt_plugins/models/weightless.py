"""Models without weights: copies on torch's meta device, where running them tells shapes and costs little."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import FBTError, described

aten = torch.ops.aten


def meta_copy(module: nn.Module, shared: object = None) -> Any:
    """A copy without weights, on the meta device: shapes cost nothing there.

    Args:
        module: with tensors of any device; those that are plain attributes of its modules are copied alike.
        shared: something that the copy need not have, and finds empty.

    Raises:
        FBTError: if a part of it was compiled by torch.jit.
    """
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise FBTError(
                f"{name or 'it'} was compiled by torch.jit, and nobody can look into it; "
                "build the network without torch.jit.script or torch.jit.trace"
            )
    memo: dict[int, Any] = {} if shared is None else {id(shared): type(shared)()}
    for tensor in (*module.parameters(), *module.buffers(), *_loose(module)):
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    found = copy.deepcopy(module, memo)
    for part in found.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.momentum is None:
            part.momentum = 0.1  # None reads the number of steps, which has no value there
        if type(part) is nn.SyncBatchNorm:  # refuses any device but a GPU where processes are joined
            part.__class__ = _BatchNorm  # type: ignore[assignment]
    return found


class _BatchNorm(nn.modules.batchnorm._BatchNorm):
    def _check_input_dim(self, input: Tensor) -> None:
        pass


def _loose(module: nn.Module) -> list[Tensor]:
    """Tensors that are plain attributes of its modules."""
    return [v for m in module.modules() for v in vars(m).values() if isinstance(v, Tensor)]


def raised_on_meta(error: BaseException) -> str:
    """What code that was run without weights raised, and the usual reason."""
    text = described(error)
    elsewhere = "expected device" in text or "on the same device" in text
    return f"{text} (it makes tensors on the CPU, wherever it runs: use device=x.device)" if elsewhere else text


def whole_copy(module: Any, memo: Mapping[int, Any] | None = None) -> Any:
    """``copy.deepcopy``, also of modules that keep what they have computed, as torch's old weight_norm does.

    Args:
        module: an nn.Module.
        memo: what stands for tensors of the original, by their id.
    """
    computed = {id(tensor): tensor.detach().clone() for tensor in _loose(module) if not tensor.is_leaf}
    return copy.deepcopy(module, {**computed, **(memo or {})})


def call(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Any:
    """Calls an operator of torch; on the meta device norms, GELU, linear layers and first weights are shortened.

    There torch computes these in Python, 2 ms a call, which was two thirds of the time to build or measure a model.
    """
    quick = _QUICK.get(function)
    if quick is not None and isinstance(args[0], Tensor) and args[0].is_meta:
        out = quick(*args)
        if out is not None:  # what is wrong is for torch to say
            return out
    return function(*args, **(kwargs or {}))


class MetaMode(TorchDispatchMode):
    """Within it, what asks autocast for its input's device gets the CPU's where that device is meta."""

    def __enter__(self) -> Any:
        self._own = [(owner, name, getattr(owner, name)) for owner, name in _AUTOCAST]
        for owner, name, function in self._own:
            setattr(owner, name, _on_cpu(function))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for owner, name, function in self._own:
            setattr(owner, name, function)


_AUTOCAST: tuple[tuple[Any, str], ...] = (
    (torch.autocast, "__init__"),
    (torch, "is_autocast_enabled"),
    (torch, "get_autocast_dtype"),
)


def _on_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    def on_cpu(*args: Any, **kwargs: Any) -> Any:
        plain = ["cpu" if isinstance(value, str) and value == "meta" else value for value in args]
        return function(*plain, **{k: "cpu" if k == "device_type" and v == "meta" else v for k, v in kwargs.items()})

    return on_cpu


class Shortened(MetaMode):
    """Within it, all operators are run by :func:`call`."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return call(function, args, kwargs)


@contextmanager
def on_meta() -> Iterator[None]:
    """Within it everything is built on the meta device, and first weights, which are nowhere, take no time."""
    with torch.device("meta"), Shortened():
        yield


def _in_place(x: Tensor, *numbers: Any) -> Tensor | None:
    """Numbers are put into a tensor, or drawn for it, whatever they are."""
    plain = not any(isinstance(value, Tensor) and value.ndim for value in numbers)
    return x if plain and x.is_floating_point() else None


def _gelu(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _layer_norm(x: Tensor, shape: Sequence[int], *rest: Any) -> tuple[Tensor, ...] | None:
    outer, inner = x.shape[: x.ndim - len(shape)], torch.Size(shape)
    if x.shape != outer + inner or any(p.shape != inner for p in rest if isinstance(p, Tensor)):
        return None
    statistics = (*outer, *(1 for _ in inner))
    return x.new_empty(x.shape), x.new_empty(statistics), x.new_empty(statistics)


def _batch_norm(x: Tensor, *rest: Any) -> tuple[Tensor, ...] | None:
    channels, training = x.shape[1:2], rest[4]
    if any(p.shape != channels for p in rest if isinstance(p, Tensor)):
        return None
    statistics = channels if training else (0,)
    return torch.empty_like(x), x.new_empty(statistics), x.new_empty(statistics)


def _addmm(bias: Tensor, a: Tensor, b: Tensor) -> Tensor | None:
    fits = a.ndim == b.ndim == 2 and a.shape[1:] == b.shape[:1] and bias.shape == b.shape[1:]
    if not (fits and bias.dtype == a.dtype == b.dtype):
        return None
    return a.new_empty(a.shape[0], b.shape[1])


_QUICK: dict[Any, Callable[..., Any]] = {
    aten.gelu.default: _gelu,
    aten.native_layer_norm.default: _layer_norm,
    aten.native_batch_norm.default: _batch_norm,
    aten.addmm.default: _addmm,
    **dict.fromkeys(
        (aten.uniform_.default, aten.normal_.default, aten.erfinv_.default, aten.clamp_.default), _in_place
    ),
    **dict.fromkeys((aten.zero_.default, aten.fill_.Scalar, aten.mul_.Tensor, aten.add_.Tensor), _in_place),
}
