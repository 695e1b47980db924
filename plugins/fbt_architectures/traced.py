"""The traced way of cutting a model: for every network that no declaration covers.

The forward pass is traced once per image size and mode; where one tensor alone crosses behind a cut, the code before
and behind it become two parts. What cannot be cut so is refused, with what crosses.
"""

from __future__ import annotations

import hashlib
import linecache
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, fx, nn

from fbt_plugins import FBTError, Knowledge
from fbt_plugins.authoring import NetPart

from .tracer import BATCH, ROOT, ShallowTracer, TraceError, name_of, val

Image = tuple[int, int, int]
Code = Callable[["TracedPart", Tensor], Any]
_NUMBERS = count(1)
_WRAP = "let the factory return a module whose forward returns the logits alone"
TWO_HEADS = {"head": "class_logits", "head_dist": "distillation_logits"}
"""What timm calls the classifiers of a model that was distilled as DeiT was, and what their logits are called here."""


@dataclass(frozen=True)
class Crossing:
    """The one tensor that crosses a cut.

    Attributes:
        name: of the module behind which the cut is.
        position: of the cut: the last node before it.
        carrier: the node whose value crosses.
    """

    name: str
    position: int
    carrier: fx.Node

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image's share of the tensor."""
        return tuple(val(self.carrier).shape[1:])


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
        tracer = ShallowTracer(net, descents(net, [*points, *classifiers]), image, training)
        self.graph = tracer.run()
        self.constants = tracer.constants
        self.nodes = list(self.graph.nodes)
        self._positions = {node: i for i, node in enumerate(self.nodes)}
        self.logits = self.nodes[-1].args[0]
        if not isinstance(self.logits, fx.Node) or not isinstance(val(self.logits), Tensor):
            kind = (
                f"a {type(self.logits).__name__}" if not isinstance(self.logits, fx.Node) else _show(val(self.logits))
            )
            raise TraceError(f"its forward gives {kind}, not logits (N, classes)", self._line(-2), _WRAP)
        if tuple(val(self.logits).shape[:1]) != (BATCH,) or val(self.logits).ndim != 2:
            kind = _show(val(self.logits))
            raise TraceError(f"its forward gives {kind}, not logits (N, classes)", self._line(-2), _WRAP)
        wanted = {f"{ROOT}.{name}" for name in classifiers}
        ran = [n for n in self.nodes if n.op == "call_module" and n.target in wanted]
        self.features = [n.args[0] for n in ran]
        self.limit = min((self._positions[n] for n in ran), default=len(self.nodes) - 1)
        heads = {next((p for p in str(n.target).split(".") if p in TWO_HEADS), ""): n for n in ran}
        both = len(ran) == 2 and heads.keys() == TWO_HEADS.keys() and all(val(n).ndim == 2 for n in ran)
        self.extra = {told: heads[name] for name, told in TWO_HEADS.items()} if both else {}

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
            tensors = [n for n in across if not isinstance(val(n), int)]
            if len(tensors) == 1 and isinstance(val(tensors[0]), Tensor) and val(tensors[0]).shape[:1] == (BATCH,):
                return Crossing(name, position, tensors[0])
            why = why or " and ".join(_show(val(n)) for n in tensors)
        what = f"behind {name!r} later layers need {why or 'no tensor'}, and a stage hands on exactly one"
        raise TraceError(what, self._line(inside[-1]))

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
        return any(self._positions[user] > position for user in node.users)

    def _has_weights(self, node: fx.Node) -> bool:
        name = name_of(node)
        return node.op == "call_module" and any(True for _ in self.net.get_submodule(name).parameters())

    def crossings(self, points: Iterable[str]) -> list[Crossing]:
        """All cuts.

        Raises:
            TraceError: if one cannot be made, or does not come after the one before it.
        """
        found: list[Crossing] = []
        for name in points:
            crossing = self.crossing(name)
            if found and crossing.position <= found[-1].position:
                raise TraceError(f"{name!r} does not run behind {found[-1].name!r}")
            found.append(crossing)
        return found

    def part(self, source: Crossing | None, target: Crossing | None) -> tuple[fx.Graph, list[str], list[str]]:
        """What runs between two cuts.

        Args:
            source: None is the images.
            target: None is the output: (logits, features of each classifier, what else there is to tell).

        Returns:
            The graph, and the names of the modules and of the tensors that it reaches.
        """
        start = source.carrier if source else self.nodes[0]
        before = source.position if source else -1
        ends = [target.carrier] if target else [self.logits, *self.features, *self.extra.values()]
        needed: set[fx.Node] = set()
        waiting = list(ends)
        while waiting:
            node = waiting.pop()
            if node is not start and node not in needed:
                needed.add(node)
                if not self._lies_before(node, before):
                    waiting += node.all_input_nodes
        graph = fx.Graph()
        made = {start: graph.placeholder("x")}
        modules: list[str] = []
        tensors: list[str] = []
        for node in sorted(needed, key=self._positions.__getitem__):
            if self._lies_before(node, before):
                made[node] = graph.call_method("size", (made[start], self._dimension(node, start)))
            elif node.op == "get_attr" and node.target in self.constants:
                made[node] = graph.call_function(_constant(self.constants[str(node.target)]), (made[start],))
            else:
                made[node] = graph.node_copy(node, made.__getitem__)
                _follow_device(made[node], made[start])
                if node.op == "call_module":
                    modules.append(name_of(node))
                elif node.op == "get_attr":
                    tensors.append(name_of(node))
        if target:
            graph.output(made[target.carrier])
        else:
            told = {name: made[node] for name, node in self.extra.items()}
            graph.output((made[self.logits], [made[node] for node in self.features], told))
        return graph, modules, tensors

    def _lies_before(self, node: fx.Node, position: int) -> bool:
        """Whether it belongs to an earlier part; what does not depend on the images may be computed again."""
        return node.meta["images"] and self._positions[node] <= position

    @staticmethod
    def _dimension(node: fx.Node, carrier: fx.Node) -> int:
        """Where a carrier has the batch size that another node stands for."""
        sizes = tuple(val(carrier).shape)
        if not isinstance(val(node), int) or val(node) not in sizes:
            raise TraceError(f"{_show(val(node))} crosses a cut besides the tensor")
        return sizes.index(val(node))


class TracedCode:
    """The code of a network's parts, for each image size that was met, in both modes.

    It knows names, no tensors, so all copies of a model share one.

    Args:
        points: names of the modules that end the stages.
        classifiers: names of the classifiers.
    """

    def __init__(self, points: Sequence[str], classifiers: Sequence[str]) -> None:
        self.points, self.classifiers = tuple(points), tuple(classifiers)
        self._codes: dict[tuple[int, tuple[int, ...]], tuple[str, Code, Code]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> TracedCode:
        return self

    def make(self, net: nn.Module, image: Image) -> tuple[list[Crossing], list[tuple[set[str], set[str]]]]:
        """Traces a network at an image size.

        Returns:
            The cuts, and for each part the names of the modules and of the tensors that it reaches.

        Raises:
            TraceError: if it cannot be traced or cut, or would do something else for another image size.
        """
        traces = [Trace(net, self.points, self.classifiers, image, training) for training in (False, True)]
        rows = [trace.crossings(self.points) for trace in traces]
        if any(a.shape != b.shape for a, b in zip(*rows, strict=True)):
            raise TraceError("its stages give tensors of other sizes in training than in eval mode")
        shapes = [image, *(crossing.shape for crossing in rows[0])]
        reached = []
        for number, shape in enumerate(shapes):
            codes, modules, tensors = [], set(), set()
            for trace, row in zip(traces, rows, strict=True):
                ends = (row[number - 1] if number else None, row[number] if number < len(row) else None)
                graph, own, direct = trace.part(*ends)
                codes.append(_compile(graph))
                modules |= set(own)
                tensors |= set(direct)
            (text, plain), (other, training) = codes
            key = (number, tuple(shape))
            if key in self._codes and self._codes[key][0] != text + other:
                raise TraceError(f"part {number + 1} computes something else from another image size")
            self._codes[key] = (text + other, plain, training)
            reached.append((modules, tensors))
        return rows[0], reached

    def find(self, number: int, x: Tensor, net: nn.Module) -> Code:
        """The code of a part (from 0) for an input; the first part's is made where it is missing.

        Raises:
            FBTError: if the network cannot take images of that size, or a later part was not made for this input.
        """
        key = (number, tuple(x.shape[1:]))
        if key not in self._codes:
            if number:
                known = ", ".join(_shape(shape) for n, shape in self._codes if n == number)
                raise FBTError(f"part {number + 1} takes {known}, not {_shape(key[1])}: run the parts before it first")
            self.make(net, key[1])  # type: ignore[arg-type]
        _, plain, training = self._codes[key]
        return training if net.training else plain


class TracedPart(NetPart):
    """A stage of a traced model.

    Args:
        net: the network; traced code begins there: ``self.net.layer1(x)``.
        code: of all parts.
        number: of this part, from 0.
        modules, tensors: names of what it reaches, and whatever else should count as part of it.
    """

    def __init__(
        self, net: nn.Module, code: TracedCode, number: int, modules: Iterable[str], tensors: Iterable[str]
    ) -> None:
        super().__init__(net, sorted(set(modules)), sorted(set(tensors)))
        self.code, self.number = code, number

    def forward(self, x: Tensor) -> Any:
        return self.code.find(self.number, x, self.net)(self, x)


class TracedHead(TracedPart):
    """What comes behind the last stage."""

    def forward(self, x: Tensor) -> Knowledge:
        output, features, extra = super().forward(x)
        if not features:  # an encoder
            return Knowledge(output, None, {}, extra)
        pooled = [_pooled(f) for f in features]
        return Knowledge(pooled[0] if len(pooled) == 1 else torch.stack(pooled).mean(0), output, {}, extra)


def _pooled(features: Tensor) -> Tensor:
    """(N, D): a classifier that is a 1x1 convolution is given (N, D, h, w), one for each token (N, L, D)."""
    if features.ndim == 4:
        return features.flatten(1) if features.shape[2:].numel() == 1 else features.mean((2, 3))
    return features.mean(1) if features.ndim == 3 else features


def _is_in(name: str, full: str) -> bool:
    return name == full or name.startswith(full + ".")


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


def _compile(graph: fx.Graph) -> tuple[str, Code]:
    python = graph.python_code("self")
    name = f"<traced part {next(_NUMBERS)}>"
    linecache.cache[name] = (len(python.src), None, python.src.splitlines(True), name)  # tracebacks show the lines
    space = dict(python.globals)
    exec(compile(python.src, name, "exec"), space)  # fx wrote it, from the network's own forward
    return python.src, space["forward"]


def _show(value: Any) -> str:
    """A value that crosses, in words."""
    if isinstance(value, Tensor):
        return f"a tensor of {_shape(tuple(value.shape)[1:])} per image"
    if isinstance(value, tuple | list):
        return "(" + ", ".join(map(_show, value)) + ")"
    return "a batch size" if isinstance(value, int) else repr(value)


def _shape(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes)) or "one number"
