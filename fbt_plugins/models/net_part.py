"""A part of a network that stands for itself, as the stages of a :class:`StagedModel` do."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from .unowned import Unowned


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
