"""The traced way of cutting a model: for every network that no declaration covers.

The forward pass is traced once per image size and mode; where one tensor alone crosses behind a cut, the code before
and behind it become two parts. What cannot be cut so is refused, with what crosses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from .autocast_regions import Regions, within
from .in_place import follow_writes
from .tracer import BATCH, ROOT, ShallowTracer, TraceError, name_of, val, values_of

Image = tuple[int, int, int]
Reached = dict[str, str]
"""Names of modules or of tensors, each with the network's own line that uses it."""
_WRAP = "let the factory return a module whose forward returns the logits alone"
JOIN = (
    "let the network hand on one tensor, such as torch.cat of what fits, or write a StagedModel whose stages do "
    "(docs/guides/models.md)"
)
"""What helps where several tensors cross all along."""
TWO_HEADS = {"head": "class_logits", "head_dist": "distillation_logits"}
"""What timm calls the classifiers of a model that was distilled as DeiT was, and what their logits are called here."""


@dataclass(frozen=True)
class Crossing:
    """The one tensor that crosses a cut.

    Attributes:
        name: of the module behind which the cut is.
        position: of the cut: the last node before it.
        carrier: the node whose value crosses.
        behind: how many tokens behind the grid's stand before them in what a stage gives.
    """

    name: str
    position: int
    carrier: fx.Node
    behind: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image's share of the tensor."""
        return tuple(val(self.carrier).shape[1:])

    @property
    def line(self) -> str:
        """The network's own, in which the tensor is made."""
        return str(self.carrier.meta.get("line", ""))


class Trace:
    """One trace of a network, and where it can be cut.

    Args:
        net: the network.
        points: names of modules behind which it may be cut.
        classifiers: names of its classifiers, whose inputs are the features; an encoder has none.
        image: (C, H, W).
        training: which mode.

    Raises:
        TraceError: if the forward pass is none that a trace can follow, or gives something else than logits, or, of a
            network without a classifier, features.
    """

    def __init__(
        self, net: nn.Module, points: Iterable[str], classifiers: Iterable[str], image: Image, training: bool
    ) -> None:
        self.net, self.image = net, image
        self.graph, self.constants = _trace(net, descents(net, [*points, *classifiers]), image, training)
        self.nodes = list(self.graph.nodes)
        follow_writes(self.nodes, nn.ModuleDict({ROOT: net}))
        self._positions = {node: i for i, node in enumerate(self.nodes)}
        self.logits = self.nodes[-1].args[0]
        if not isinstance(self.logits, fx.Node) or not isinstance(val(self.logits), Tensor):
            kind = _show(val(self.logits)) if isinstance(self.logits, fx.Node) else _kind(self.logits)
            raise TraceError(f"its forward gives {kind}, not logits (N, classes)", self._line(-2), _WRAP)
        if val(self.logits).ndim != 2 or val(self.logits).shape[0] != BATCH or not val(self.logits).shape[1]:
            kind = _show(val(self.logits))
            raise TraceError(f"its forward gives {kind}, not logits (N, classes)", self._line(-2), _WRAP)
        wanted = {f"{ROOT}.{name}" for name in classifiers}
        ran = [n for n in self.nodes if n.op == "call_module" and n.target in wanted]
        self.features = [n.args[0] for n in ran]
        self.limit = min((self._positions[n] for n in ran), default=len(self.nodes) - 1)
        heads = {next((p for p in str(n.target).split(".") if p in TWO_HEADS), ""): n for n in ran}
        both = len(ran) == 2 and heads.keys() == TWO_HEADS.keys() and all(val(n).ndim == 2 for n in ran)
        self.extra = {told: heads[name] for name, told in TWO_HEADS.items()} if both else {}
        self._live = all_before([self.logits, *self.features, *self.extra.values()])

    def crossing(self, name: str) -> Crossing:
        """Where one tensor alone crosses behind a module, before anything with weights comes.

        Raises:
            TraceError: if there is no such place, with what crosses.
        """
        inside = self._inside(name)
        if not inside:
            raise TraceError(f"{name!r} is not run")
        if inside[-1] >= self.limit:
            raise TraceError(
                f"{name!r} holds the classifier or runs behind it",
                step="the head begins in front of it: end the last stage at a module before it",
            )
        why = ""
        for position in range(inside[-1], self.limit):
            node = self.nodes[position]
            if position > inside[-1] and self._has_weights(node):
                break
            across = [n for n in self.nodes[: position + 1] if n.meta["images"] and self._is_used_after(n, position)]
            tensors = [n for n in across if n.meta["pixels"]]
            if len(tensors) == 1 and _is_handed_on(val(tensors[0])):
                return Crossing(name, position, tensors[0])
            why = why or " and ".join(_show(val(n)) for n in tensors)
        what = f"behind {name!r} later layers need {why or 'no tensor'}, and a stage hands on exactly one"
        raise TraceError(what, self._line(inside[-1]), f"cut where one crosses, with stages=[...], or {JOIN}")

    def _line(self, position: int) -> str:
        """Where a node comes from in the network's own code."""
        return self.nodes[position].meta.get("line", "")

    def runs(self, name: str) -> bool:
        """Whether a module, or one in it, runs at all."""
        return bool(self._inside(name))

    def _inside(self, name: str) -> list[int]:
        """Positions of the nodes that are a module, or in one: a list of modules is none that runs itself."""
        full = f"{ROOT}.{name}"
        return [
            i
            for i, node in enumerate(self.nodes)
            if (node.op == "call_module" and _is_in(str(node.target), full))
            or any(_is_in(path, full) for path in node.meta["path"])
        ]

    def _is_used_after(self, node: fx.Node, position: int) -> bool:
        return any(self._positions[user] > position and user in self._live for user in node.users)

    def _has_weights(self, node: fx.Node) -> bool:
        name = name_of(node)
        return node.op == "call_module" and any(True for _ in self.net.get_submodule(name).parameters())

    def weights_before(self, position: int) -> int:
        """How many weights run in front of a cut."""
        names = {name_of(n) for n in self.nodes[: position + 1] if n.op == "call_module"}
        return sum(p.numel() for name in names for p in self.net.get_submodule(name).parameters())

    def crossings(self, points: Sequence[str], behind: Sequence[int]) -> list[Crossing]:
        """All cuts, and how many tokens each has behind the grid's.

        Raises:
            TraceError: if one cannot be made, or does not come after the one before it.
        """
        found: list[Crossing] = []
        for name, after in zip(points, behind, strict=True):
            crossing = replace(self.crossing(name), behind=after)
            if found and crossing.position <= found[-1].position:
                raise TraceError(f"{name!r} does not run behind {found[-1].name!r}")
            found.append(crossing)
        return found

    def part(self, source: Crossing | None, target: Crossing | None) -> tuple[fx.Graph, Reached, Reached]:
        """What runs between two cuts.

        Args:
            source: None is the images.
            target: None is the output: (logits, features of each classifier, what else there is to tell).

        Returns:
            The graph, and the modules and the tensors that it reaches.
        """
        ends = [target.carrier] if target else [self.logits, *self.features, *self.extra.values()]
        graph, made, modules, tensors = self._between(source, ends)
        if target and target.behind:
            graph.output(graph.call_function(torch.roll, (made[target.carrier], target.behind, 1)))
        elif target:
            graph.output(made[target.carrier])
        else:
            told = {name: made[node] for name, node in self.extra.items()}
            graph.output((made[self.logits], [made[node] for node in self.features], told))
        return graph, modules, tensors

    def reaching(self, cuts: Sequence[Crossing]) -> fx.Graph:
        """What runs from the images to the tensors of some cuts."""
        graph, made, *_ = self._between(None, [cut.carrier for cut in cuts])
        graph.output([made[cut.carrier] for cut in cuts])
        return graph

    def _between(
        self, source: Crossing | None, ends: Sequence[fx.Node]
    ) -> tuple[fx.Graph, dict[fx.Node, fx.Node], Reached, Reached]:
        """A graph without an output, what stands in it for the nodes of the trace, and what it reaches."""
        start = source.carrier if source else self.nodes[0]
        before = source.position if source else -1
        needed: set[fx.Node] = set()
        waiting = list(ends)
        while waiting:
            node = waiting.pop()
            if node is not start and node not in needed:
                needed.add(node)
                if not self._lies_before(node, before):
                    waiting += node.all_input_nodes
                elif self._known(node, start) is None:
                    waiting += [i for i in node.all_input_nodes if not i.meta["pixels"]]
        graph = fx.Graph()
        made = {start: graph.placeholder("x")}
        if source and source.behind:
            made[start] = graph.call_function(torch.roll, (made[start], -source.behind, 1))
        modules: Reached = {}
        tensors: Reached = {}
        for node in sorted(needed, key=self._positions.__getitem__):
            known = self._known(node, start) if self._lies_before(node, before) else None
            if known is not None:
                made[node] = graph.create_node(known[0], known[1], (made[start], known[2]))
            elif node.op == "get_attr" and node.target in self.constants:
                made[node] = graph.call_function(_constant(self.constants[str(node.target)]), (made[start],))
            else:
                # what lies before the cut and reads no pixels may be like the carrier where it was like another tensor
                made[node] = graph.node_copy(node, lambda i: made[i if i in made else start])
                _follow_device(made[node], made[start])
                _keep_regions(made[node], node.meta["regions"])
                if node.op == "call_module":
                    modules.setdefault(name_of(node), node.meta["line"])
                elif node.op == "get_attr":
                    tensors.setdefault(name_of(node), node.meta["line"])
        return graph, made, modules, tensors

    def _lies_before(self, node: fx.Node, position: int) -> bool:
        """Whether it belongs to an earlier part; what does not depend on the images may be computed again."""
        return node.meta["images"] and self._positions[node] <= position

    @staticmethod
    def _known(node: fx.Node, carrier: fx.Node) -> tuple[str, Any, Any] | None:
        """How a carrier tells what a node in front of it stands for: a batch size or a dtype.

        Returns:
            Kind and target of the node that asks it, and the argument; None where the node is to be computed again.
        """
        value, like = val(node), val(carrier)
        if isinstance(value, int) and value in tuple(like.shape):
            return "call_method", "size", tuple(like.shape).index(value)
        if isinstance(value, torch.dtype) and value == like.dtype:
            return "call_function", getattr, "dtype"
        foreign = [i for i in node.all_input_nodes if i.meta["pixels"]]
        same = set(foreign).isdisjoint(values_of(node)) and all(val(i).dtype == like.dtype for i in foreign)
        if node.meta["pixels"] or not same:
            raise TraceError(f"{_show(value)} crosses a cut besides the tensor", node.meta["line"])
        return None


def _is_handed_on(value: Any) -> bool:
    """Whether a stage may give it: a tensor of real numbers, the images first."""
    return isinstance(value, Tensor) and value.shape[:1] == (BATCH,) and value.is_floating_point()


def _is_in(name: str, full: str) -> bool:
    return name == full or name.startswith(full + ".")


def all_before(ends: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes that some nodes are computed from, and these: what an encoder lists besides has no say in logits."""
    found: set[fx.Node] = set()
    waiting = list(ends)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def _trace(net: nn.Module, inside: set[str], image: Image, training: bool) -> tuple[fx.Graph, dict[str, Tensor]]:
    """The graph and its constants.

    A layer without weights whose output has no batch, such as rotary embeddings that are given tokens to count them, is
    looked into: what it gives may be computed again behind a cut, if it reads no pixels.
    """
    tracer = ShallowTracer(net, inside, image, training)
    graph, looked = tracer.run(), set(inside)
    while more := {
        name for node in graph.nodes if (name := name_of(node)) not in looked and _gives_no_batch(net, node)
    }:
        looked |= more
        try:
            deeper = ShallowTracer(net, looked, image, training)
            graph, tracer = deeper.run(), deeper
        except TraceError:  # then it stays a layer
            break
    return graph, tracer.constants


def _gives_no_batch(net: nn.Module, node: fx.Node) -> bool:
    if node.op != "call_module" or not node.meta["pixels"]:
        return False
    given = val(node) if isinstance(val(node), tuple | list) else (val(node),)
    sizes = [size for value in given if isinstance(value, Tensor) for size in value.shape]
    weights = any(True for _ in net.get_submodule(name_of(node)).parameters())
    return bool(sizes) and not weights and all(size % BATCH for size in sizes if size)


def descents(net: nn.Module, names: Iterable[str]) -> set[str]:
    """The modules that a trace must look into to see the named ones run: what holds them, and what is no layer."""
    found = set()
    for name in names:
        parts = name.split(".")
        found |= {".".join(parts[:i]) for i in range(1, len(parts))}
        if isinstance(net.get_submodule(name), nn.ModuleList | nn.ModuleDict):
            found.add(name)
    return found


def _constant(value: Tensor) -> Callable[[Tensor], Tensor]:
    def constant(like: Tensor) -> Tensor:
        return value.to(like.device)

    # Its name tells values apart, for code is compared as text.
    content = str(tuple(value.shape)).encode()
    if not value.is_meta:  # a network without weights has constants without values
        content += value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    digest = hashlib.sha256(content).hexdigest()
    constant.__qualname__ = constant.__name__ = f"constant_{digest[:16]}"
    return constant


def _follow_device(node: fx.Node, like: fx.Node) -> None:
    """Devices that the trace wrote down become that of a part's input: a model may move."""
    found: list[fx.Node] = []

    def device(value: Any) -> Any:
        if isinstance(value, torch.device) and not found:
            with node.graph.inserting_before(node):
                found.append(node.graph.call_function(getattr, (like, "device")))
        return found[0] if isinstance(value, torch.device) else value

    args, kwargs = fx.node.map_aggregate((node.args, node.kwargs), device)
    node.args, node.kwargs = args, kwargs


def _keep_regions(node: fx.Node, regions: Regions) -> None:
    """Lets a node run in the regions of ``torch.autocast`` or ``torch.no_grad`` in which the network runs it."""
    if not regions or node.op not in ("call_function", "call_method", "call_module") or node.target is getattr:
        return
    target: Any = node.target
    if node.op == "call_function":
        node.target = within(regions, target)
        return
    if node.op == "call_module":
        with node.graph.inserting_before(node):
            target = node.graph.create_node("get_attr", target)
    node.op, node.target, node.args = "call_function", within(regions), (target, *node.args)


def _show(value: Any) -> str:
    """A value that crosses, in words."""
    if isinstance(value, Tensor):
        kind = "" if value.is_floating_point() else f" of {str(value.dtype).removeprefix('torch.')}"
        if value.shape[:1] != (BATCH,) and BATCH in value.shape[1:]:
            sizes = ["images" if size == BATCH else str(size) for size in value.shape]
            return f"a tensor ({', '.join(sizes)}){kind}, which does not have the images first"
        return f"a tensor of {show_sizes(tuple(value.shape)[1:])}{kind} per image"
    if isinstance(value, tuple | list):
        return "(" + ", ".join(map(_show, value)) + ")"
    return "a batch size" if isinstance(value, int) else repr(value)


def _kind(value: Any) -> str:
    """An output that is no tensor, in words."""
    if isinstance(value, dict):
        return f"an object with {' and '.join(map(repr, value))}"
    return f"a {type(value).__name__}"


def show_sizes(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes)) or "one number"
