"""Weights that a network uses more than once: a stage owns what it uses, so no cut lies between two uses of one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, fx, nn

from .traced import Reached, Trace
from .tracer import TraceError, name_of


class SharedWeightError(TraceError):
    """A weight is used in two parts."""


def spans(trace: Trace) -> list[tuple[int, int]]:
    """From where to where in a trace each weight is used; what reads no pixels is computed again where it is used."""
    positions = {node: i for i, node in enumerate(trace.nodes)}
    ends: dict[fx.Node, int] = {}
    for node in reversed(trace.nodes):
        again = () if node.meta["pixels"] else node.users
        ends[node] = max([positions[node], *(ends[user] for user in again)])
    uses: dict[int, tuple[int, int]] = {}
    for i, node in enumerate(trace.nodes):
        for weight in _weights(trace, node):
            first, last = uses.get(id(weight), (i, i))
            uses[id(weight)] = (first, max(last, ends[node]))
    return list(uses.values())


def _weights(trace: Trace, node: fx.Node) -> list[nn.Parameter]:
    if node.op == "call_module":
        return list(trace.net.get_submodule(name_of(node)).parameters())
    if node.op != "get_attr" or node.target in trace.constants:
        return []
    owner, _, name = name_of(node).rpartition(".")
    tensor = getattr(trace.net.get_submodule(owner), name)
    return [tensor] if isinstance(tensor, nn.Parameter) else []


def no_weight_twice(net: nn.Module, reached: list[tuple[Reached, Reached]]) -> None:
    """Holds the parts of a network against each other.

    Args:
        net: the network.
        reached: the modules and the tensors that each part reaches, the head's last.

    Raises:
        SharedWeightError: if two of them reach the same weight.
    """
    owners: dict[int, int] = {}
    for number, (modules, tensors) in enumerate(reached, 1):
        for name, tensor in held(net, modules, tensors):
            if isinstance(tensor, nn.Parameter) and owners.setdefault(id(tensor), number) != number:
                first, second = (
                    "the head" if n == len(reached) else f"stage {n}" for n in (owners[id(tensor)], number)
                )
                raise SharedWeightError(
                    f"{name} is used in {first} and in {second}, and a weight belongs to one only",
                    modules.get(name, "") or tensors.get(name, ""),
                    step="cut where all that use it are in one, with stages=[...]",
                )


def held(net: nn.Module, modules: Iterable[str], tensors: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a part reaches, each with the name by which it does: a module's, or its own."""
    for name in sorted(modules):
        module = net.get_submodule(name)
        yield from ((name, tensor) for tensor in (*module.parameters(), *module.buffers()))
    for path in sorted(tensors):
        owner, _, name = path.rpartition(".")
        yield path, getattr(net.get_submodule(owner), name)
