"""A part of a network that stands for itself, as the stages of a :class:`StagedModel` do; and modules held unowned."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

from torch import nn

T = TypeVar("T")


class Unowned(Generic[T]):
    """Holds a module (or a list or dict of modules) for a module that only runs it.

    torch registers every module that is an attribute of another. The weights would then be in the module tree twice:
    optimizer, checkpoints, EMA and DDP would take them for the second module's own. Whoever holds something here moves
    it with ``_apply`` and sets its mode by itself, where that is needed.

    Args:
        value: what is held.
    """

    def __init__(self, value: T) -> None:
        self.value = value


class NetPart(nn.Module):
    """Holds what a part of a network reaches, and the network, which its code may begin at.

    Args:
        net: the network.
        modules: names of submodules.
        tensors: names of parameters and buffers that are in none of them.
    """

    def __init__(self, net: nn.Module, modules: Iterable[str], tensors: Iterable[str]) -> None:
        super().__init__()
        self._net = Unowned(net)
        self._tensors = tuple(tensors)
        for name in modules:
            self.add_module(name.replace(".", "_"), net.get_submodule(name))
        self.relink()

    @property
    def net(self) -> nn.Module:
        return self._net.value

    def relink(self) -> None:
        """Lists the tensors again, in case the network has replaced them."""
        for path in self._tensors:
            owner, _, name = path.rpartition(".")
            module = self.net.get_submodule(owner)
            if name in module._parameters:
                self.register_parameter(path.replace(".", "_"), module._parameters[name])
            elif name in module._buffers:
                persistent = name not in module._non_persistent_buffers_set
                self.register_buffer(path.replace(".", "_"), module._buffers[name], persistent)

    def direct_buffers(self) -> dict[str, tuple[nn.Module, str]]:
        """The buffers among its tensors, by name: the module of the network that has each, and its name there."""
        found = {}
        for path in self._tensors:
            owner, _, name = path.rpartition(".")
            module = self.net.get_submodule(owner)
            if module._buffers.get(name) is not None:
                found[path.replace(".", "_")] = module, name
        return found
