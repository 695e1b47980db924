"""What the checks have in common: how they fail, and what is wrong with any module of a plugin."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..distill.loss_contract import leaves
from ..errors import FBTError, described, text_of
from ..models.weightless import call, meta_copy
from ..registry.loading import load_plugins
from ..registry.registries import PluginRegistry
from ..registry.torch_defaults import TorchDefaults

CLOSE: dict[str, Any] = dict(rtol=1e-3, atol=1e-4)
"""Of values that are the same but for rounding: a batch is computed in another order than an image."""


def built(registry: PluginRegistry, part: Any) -> Any:
    """A plugin's part, which may be given as its config."""
    if not isinstance(part, Mapping):
        return part
    load_plugins()
    return registry.build(part)


def that(holds: bool, message: str) -> None:
    """An assertion that ``python -O`` does not remove."""
    if not holds:
        raise AssertionError(message)


@contextmanager
def refused(what: str) -> Iterator[None]:
    """Whatever is raised in here is a failed check, and so is a setting of torch that is left changed."""
    defaults = TorchDefaults.now()
    try:
        try:
            yield
        finally:
            changed = defaults.restore()
    except AssertionError:
        raise
    except (Exception, SystemExit) as error:
        raise AssertionError(
            f"{what}: {text_of(error) if isinstance(error, FBTError) else described(error)}"
        ) from error
    that(not changed, f"{what}: it {changed}")


def check_gradients(who: str, inputs: Mapping[str, Tensor], module: nn.Module) -> None:
    """Gradients of inputs and trained parameters must be there, for DDP waits for each, and be finite."""
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    for name, tensor in (*inputs.items(), *trained.items()):
        that(tensor.grad is not None, f"{who}: no gradient reaches {name}")
        that(bool(tensor.grad.isfinite().all()), f"{who}: the gradient of {name} is not finite")  # type: ignore[union-attr]


def check_registered(
    who: str, value: Tensor, module: nn.Module, before: Iterable[str], known: Iterable[Tensor]
) -> None:
    """All that is trained must be parameters that the module has before it runs.

    Args:
        who: what the message begins with.
        value: what the module computed, with its graph.
        module: as it is now.
        before: names of its parameters before it ran.
        known: leaves of the graph that are somebody else's.
    """
    late = [name for name, _ in module.named_parameters() if name not in set(before)]
    that(
        not late, f"{who}: it makes its parameter {late[:1]} when it runs; no optimizer has it by then: make it before"
    )
    own = {id(tensor) for tensor in (*module.parameters(), *known)}
    for leaf in leaves(value):
        that(
            id(leaf) in own,
            f"{who}: it computes with a trained tensor {tuple(leaf.shape)} that is none of its parameters: nothing "
            "trains or saves it; keep modules in nn.ModuleList or nn.ModuleDict, not in a list or a dict",
        )


def check_device(who: str, module: nn.Module, run: Callable[[nn.Module], Any]) -> None:
    """A module that is moved must take everything along; torch's meta device stands for a GPU.

    Args:
        who: what the message begins with.
        module: as it is on the CPU.
        run: calls it with inputs on the meta device.
    """
    moved = meta_copy(module)
    loose = []
    for original, copied in zip(module.modules(), moved.modules(), strict=True):
        for name, value in vars(original).items():
            if isinstance(value, Tensor):  # which .to(device) leaves behind
                setattr(copied, name, value)
                loose.append(name)
    try:
        with _OneDevice():
            run(moved)
    except _MixedDevicesError as error:
        hint = f"{loose[0]} is a plain attribute: register_buffer" if loose else "give new tensors device=x.device"
        raise AssertionError(f"{who}: on a GPU it would mix tensors of two devices (in {error}): {hint}") from error
    except Exception:  # a value that the meta device does not have
        return


class _MixedDevicesError(Exception):
    """An operator was given tensors of two devices."""


class _OneDevice(TorchDispatchMode):
    """Within it, operators refuse tensors of two devices, as on a GPU; numbers and indices may be on the CPU."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = {t.device.type for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.ndim}
        name = str(function).removeprefix("aten.")
        if len(found) > 1 and not name.startswith(("index.", "index_put", "copy_", "_to_copy")):
            raise _MixedDevicesError(name.partition(".")[0])
        return call(function, args, kwargs)


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers, those that no state dict has too."""
    return {n: t.detach().clone() for n, t in (*module.named_parameters(), *module.named_buffers())}


def put(state: Mapping[str, Tensor], module: nn.Module) -> None:
    """Gives a module the parameters and buffers of another of its kind."""
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if name in state and state[name].shape == tensor.shape:
                tensor.copy_(state[name])
