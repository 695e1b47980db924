"""What a network writes in place: a trace knows values, and whatever looks at the tensor later must see the write."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx, nn

_AUGMENTED = (operator.iadd, operator.isub, operator.imul, operator.itruediv)


def set_item(x: Tensor, index: Any, value: Any) -> Tensor:
    """``x[index] = value``, as a function."""
    x[index] = value
    return x


def follow_writes(nodes: Sequence[fx.Node], net: nn.Module) -> None:
    """Lets what uses a tensor behind a write use what the write gives, which is the same tensor.

    Args:
        nodes: of a trace, in order; they are changed.
        net: what their modules are in.
    """
    positions = {node: i for i, node in enumerate(nodes)}
    for node in nodes:
        written = node.args[0] if node.args else None
        if isinstance(written, fx.Node) and _writes(node, net):
            now = positions[node]
            written.replace_all_uses_with(node, lambda user, now=now: positions[user] > now)  # type: ignore[misc]


def _writes(node: fx.Node, net: nn.Module) -> bool:
    """Whether it writes to its first argument, and gives that."""
    if node.op == "call_module":
        return bool(getattr(net.get_submodule(str(node.target)), "inplace", False))
    if node.op not in ("call_function", "call_method"):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or node.target in (*_AUGMENTED, set_item) or node.kwargs.get("inplace") is True


def augmented(proxy: type[fx.Proxy]) -> None:
    """Gives a kind of stand-in the operators ``+=``, ``-=``, ``*=`` and ``/=``, and ``x[index] = value``."""
    for function in _AUGMENTED:

        def method(self: Any, other: Any, function: Any = function) -> Any:
            return self.tracer.create_proxy("call_function", function, (self, other), {})

        setattr(proxy, f"__{function.__name__}__", method)

    def __setitem__(self: Any, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", set_item, (self, index, value), {})

    setattr(proxy, "__setitem__", __setitem__)  # noqa: B010 - mypy knows no such operator of it
