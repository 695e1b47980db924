"""Functions that a trace takes whole, as it takes layers: a stand-in for a tensor has not what they look at."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from timm.layers import get_notrace_functions
from torch import fx, nn
from torch.utils.checkpoint import checkpoint

from fbt_plugins import ConfigError

_TORCH = ("arange", "empty", "eye", "full", "linspace", "ones", "rand", "randn", "tensor", "zeros")
"""Functions that make tensors: torch has no eye for a batch size or dtype of a stand-in among their arguments."""
_EINOPS = ("rearrange", "reduce", "repeat", "einsum", "pack", "unpack", "parse_shape")

_METHODS = ("to", "type")
"""Methods of a tensor that take the dtype of another."""

_AGAIN = (checkpoint,)  # our own names are replaced as well
_OF_CHECKPOINT = ("use_reentrant", "preserve_rng_state", "context_fn", "determinism_check", "debug", "early_stop")
_Function: Any = torch.autograd.Function
_Compiled = torch.jit.ScriptFunction
_PLAIN = (fx.Proxy, torch.Tensor, int, float, str, tuple, list, torch.dtype, torch.device, type(None))
"""What an ``autograd.Function`` may be given as a leaf."""

Caller = Callable[[Callable[..., Any] | str, tuple[Any, ...], dict[str, Any]], Any]


@contextmanager
def leaf_functions(net: nn.Module, call: Caller) -> Iterator[None]:
    """Within it, a function of einops, one that timm keeps out of traces, or one that makes a tensor, is a leaf.

    So is one that torch.jit has compiled, and an ``autograd.Function``, whose own backward pass a trace would lose.
    They are replaced wherever the packages that the network's classes are from name them, whatever they call them.

    Args:
        net: the network.
        call: is given the function, or the name of a method, and its arguments, where a stand-in is among these.
    """
    leaves = {id(function): _leaf(function, call) for function in _functions()}
    leaves[id(checkpoint)] = _computed_once
    replaced: list[tuple[dict[str, Any], str, Any]] = []
    for module in _modules(net):
        space = vars(module)
        leaves |= {id(v): _leaf(_named(v, name), call) for name, v in list(space.items()) if isinstance(v, _Compiled)}
        replaced += [(space, name, value) for name, value in list(space.items()) if id(value) in leaves]
    apply = vars(_Function)["apply"]
    try:
        for space, name, value in replaced:
            space[name] = leaves[id(value)]
        for name in _METHODS:  # torch.Tensor inherits them, so that what is set here can be deleted again
            setattr(torch.Tensor, name, _leaf(getattr(torch.Tensor, name), call, name))
        _Function.apply = classmethod(functools.partial(_apply, apply, call))  # type: ignore[assignment]
        yield
    finally:
        _Function.apply = apply
        for name in _METHODS:
            if name in vars(torch.Tensor):
                delattr(torch.Tensor, name)
        for space, name, value in replaced:
            space[name] = value


@functools.wraps(checkpoint)
def _computed_once(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What is computed again in the backward pass is traced as if it were not."""
    if not has_stand_in((args, kwargs)):
        return _AGAIN[0](function, *args, **kwargs)
    return function(*args, **{name: value for name, value in kwargs.items() if name not in _OF_CHECKPOINT})


def _apply(apply: Any, call: Caller, kind: Any, *args: Any) -> Any:
    """Calls ``kind.apply``, as a leaf."""
    own = apply.__get__(None, kind)
    if has_stand_in(args):
        if not all(isinstance(a, _PLAIN) for a in args):
            what = f"it gives {kind.__qualname__}.apply layers or functions, whose backward pass a trace would lose"
            raise ConfigError(f"{what}; let a layer of its own call that")
        return call(_named(own, f"{kind.__module__}_{kind.__qualname__}"), args, {})
    return own(*args)


@functools.cache
def _named(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A function whose name says which it is, for code is compared as text."""

    def run(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    run.__qualname__ = run.__name__ = re.sub(r"\W+", "_", name)
    return run


def _functions() -> list[Callable[..., Any]]:
    einops = sys.modules.get("einops")  # a network that uses it has imported it
    own = [getattr(einops, name) for name in _EINOPS] if einops else []
    of_timm = [function for function in get_notrace_functions() if callable(function)]
    return [*own, *of_timm, *(getattr(torch, name) for name in _TORCH)]


def _modules(net: nn.Module) -> list[ModuleType]:
    packages = {c.__module__.partition(".")[0] for module in net.modules() for c in type(module).__mro__}
    packages = {*packages, "einops"} - {"torch", "builtins", "abc", "typing"}
    loaded = [(name, module) for name, module in list(sys.modules.items()) if isinstance(module, ModuleType)]
    own = sys.modules[checkpoint.__module__]
    return [torch, own, *(module for name, module in loaded if name.partition(".")[0] in packages)]


def _leaf(function: Callable[..., Any], call: Caller, method: str | None = None) -> Callable[..., Any]:
    @functools.wraps(function)
    def leaf(*args: Any, **kwargs: Any) -> Any:
        return call(method or function, args, kwargs) if has_stand_in((args, kwargs)) else function(*args, **kwargs)

    return leaf


def has_stand_in(value: Any) -> bool:
    """Whether a value, or anything in it, is a stand-in of a trace."""
    if isinstance(value, tuple | list):
        return any(map(has_stand_in, value))
    if isinstance(value, dict):
        return any(map(has_stand_in, value.values()))
    if isinstance(value, slice):
        return any(map(has_stand_in, (value.start, value.stop, value.step)))
    return isinstance(value, fx.Proxy)
