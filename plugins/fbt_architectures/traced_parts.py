"""The parts of a traced network, and the code that they run."""

from __future__ import annotations

import linecache
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor, fx, nn

from fbt_plugins import FBTError, Knowledge
from fbt_plugins.authoring import NetPart

from .traced import Crossing, Image, Reached, Trace, show_sizes
from .tracer import TraceError

Code = Callable[["TracedPart", Tensor], Any]
_NUMBERS = count(1)


class TracedCode:
    """The code of a network's parts, for each image size that was met, in both modes.

    It knows names, no tensors, so all copies of a model share one.

    Args:
        points: names of the modules that end the stages.
        classifiers: names of the classifiers.
        behind: see :class:`Crossing`, one number for each point.
    """

    def __init__(self, points: Sequence[str], classifiers: Sequence[str], behind: Sequence[int] = ()) -> None:
        self.points, self.classifiers = tuple(points), tuple(classifiers)
        self.behind = tuple(behind) or (0,) * len(self.points)
        self._codes: dict[tuple[int, tuple[int, ...]], tuple[str, Code, Code]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> TracedCode:
        return self

    def make(self, net: nn.Module, image: Image) -> tuple[list[Crossing], list[tuple[Reached, Reached]]]:
        """Traces a network at an image size.

        Returns:
            The cuts, and for each part the modules and the tensors that it reaches.

        Raises:
            TraceError: if it cannot be traced or cut, or would do something else for another image size.
        """
        traces = [Trace(net, self.points, self.classifiers, image, training) for training in (False, True)]
        rows = [trace.crossings(self.points, self.behind) for trace in traces]
        for plain, training in zip(*rows, strict=True):
            if plain.shape != training.shape:
                sizes = f"{show_sizes(training.shape)} in training and {show_sizes(plain.shape)} in eval mode"
                raise TraceError(
                    f"behind {plain.name!r} a tensor of another size crosses in training: per image {sizes}",
                    training.line,
                    step="where it drops tokens then, build it so that it drops none (patch_dropout=0.0 for some)",
                )
        shapes = [image, *(crossing.shape for crossing in rows[0])]
        reached: list[tuple[Reached, Reached]] = []
        for number, shape in enumerate(shapes):
            codes, modules, tensors = [], dict[str, str](), dict[str, str]()
            for trace, row in zip(traces, rows, strict=True):
                ends = (row[number - 1] if number else None, row[number] if number < len(row) else None)
                graph, own, direct = trace.part(*ends)
                codes.append(compiled(graph))
                modules |= own
                tensors |= direct
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
                known = ", ".join(show_sizes(shape) for n, shape in self._codes if n == number)
                raise FBTError(
                    f"part {number + 1} takes {known}, not {show_sizes(key[1])}: run the parts before it first"
                )
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


def compiled(graph: fx.Graph) -> tuple[str, Code]:
    python = graph.python_code("self")
    name = f"<traced part {next(_NUMBERS)}>"
    linecache.cache[name] = (len(python.src), None, python.src.splitlines(True), name)  # tracebacks show the lines
    space = dict(python.globals)
    exec(compile(python.src, name, "exec"), space)  # fx wrote it, from the network's own forward
    return python.src, space["forward"]
