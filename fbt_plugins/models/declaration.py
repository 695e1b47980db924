"""The declared way of cutting a model: one line of data that names its parts in the order they run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..errors import ConfigError, nearest
from ..registry.signatures import argument_problems
from .knowledge import Knowledge
from .net_part import NetPart
from .staged import StagedModel

FEATURES = ("classifier", "avgpool")
Told = tuple[Tensor, Tensor | None] | tuple[Tensor, Tensor | None, dict[str, Tensor]]
HeadFunction = Callable[[nn.Module, Tensor], Told]


class Segment(NetPart):
    """Consecutive steps of a network, each one of its submodules or methods, taken by name, or one of ``PLAIN``.

    Args:
        net: the network.
        steps: names such as "layer1.0", "_pos_embed" or "token 0".
        extra: further submodules and direct parameters of the network that these steps reach, by name.
    """

    def __init__(self, net: nn.Module, steps: Sequence[str], extra: Sequence[str] = ()) -> None:
        reached = {name: isinstance(_attribute(net, name), nn.Module) for name in (*steps, *extra)}
        direct = [name for name in extra if name in net._parameters or name in net._buffers]
        super().__init__(net, [name for name, is_module in reached.items() if is_module], direct)
        self.steps = tuple(steps)

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:  # found anew each time: parts of a network may be replaced
            x = _step(self._net.value, step)(x)
        return x


class Head(Segment):
    """The steps behind the last stage, then a function that gives features, logits, and what else there is to tell.

    Args:
        net, steps, extra: see :class:`Segment`.
        function: (net, output of the steps) -> (features, logits), or with ``Knowledge.extra`` as a third; logits are
            None of an encoder.
        pool: another feature than the function's, taken from the output of the steps.
    """

    def __init__(
        self,
        net: nn.Module,
        steps: Sequence[str],
        function: HeadFunction,
        extra: Sequence[str],
        pool: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(net, steps, extra)
        self._function, self._pool = function, pool

    def forward(self, x: Tensor) -> Knowledge:  # type: ignore[override]
        x = super().forward(x)
        features, logits, *extra = self._function(self.net, x)
        return Knowledge(features if self._pool is None else self._pool(x), logits, {}, *extra)


def step_head(*steps: str, encoder: bool = False) -> HeadFunction:
    """A head that is steps, the last of which with weights is the classifier: its input is the feature.

    Args:
        steps: by name.
        encoder: there is no classifier, and the feature is what the steps give, its mean over all positions.
    """

    def encode(net: nn.Module, x: Tensor) -> tuple[Tensor, None]:
        for step in steps:
            x = _step(net, step)(x)
        return _mean(x) if x.ndim > 2 else x, None

    def run(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        last = _classifier(net, steps)
        for step in steps[:last]:
            x = _step(net, step)(x)
        logits = _step(net, steps[last])(x)
        for step in steps[last + 1 :]:
            logits = _step(net, step)(logits)
        return _mean(x) if x.ndim > logits.ndim else x, logits

    return encode if encoder else run


def _classifier(net: nn.Module, steps: Sequence[str]) -> int:
    """Where the last step with weights is; a classifier that is a convolution has a mean behind it."""
    for i in reversed(range(len(steps))):
        part = _attribute(net, steps[i])
        if isinstance(part, nn.Module) and any(True for _ in part.parameters()):
            return i
    return len(steps) - 1


@dataclass(frozen=True)
class Declaration:
    """How the models of one family are cut.

    Names are separated by blanks and run in the order given; a name is a submodule or a method that maps one tensor to
    one, ``*`` stands for all children in order, and ``{a,b}`` for a and then b. Four steps have no module, and can
    be said where the network has nothing of that name: ``mean`` over all positions of tokens or of a map with channels
    first (``mean 1 2``: over these axes), ``flatten`` (``flatten 2``: from the second axis on), ``token 0`` takes one
    token, and ``permute 0 2 3 1`` orders the axes.

    Attributes:
        stem: what runs before the units; it belongs to stage 1.
        units: what a model can be cut behind.
        cuts: the units that end the default stages, or a function that names four of them.
        head: function (net, last output) -> (features, logits), a dict for ``Knowledge.extra`` may be the third; or the
            names of its steps, the classifier last, where there is one. Logits are None of an encoder.
        post: runs behind the last unit and belongs to the last stage.
        tail: runs behind the last stage and belongs to the head.
        layout: of every stage's output.
        raster: whether tokens come row by row (see :class:`StageSpec`).
    """

    stem: str
    units: str
    cuts: str | Callable[[nn.Module, list[str]], list[str]]
    head: str | HeadFunction
    post: str = ""
    tail: str = ""
    layout: str = "NCHW"
    raster: bool = True

    def cut(
        self,
        net: nn.Module,
        stages: int | Sequence[str] | None = None,
        feature: str = "classifier",
        encoder: bool = False,
        **about: Any,
    ) -> StagedModel:
        """Cuts a model.

        Args:
            net: the model.
            stages: None for the family's own four stages; a number for that many stages of about as many units each;
                or the names of the units that end the stages.
            feature: "classifier" (the input of the last linear layer) or "avgpool" (the mean over all positions).
            encoder: the model has no classifier, so that a head of steps ends in the features.
            about: what :class:`StagedModel` is told besides.

        Raises:
            ConfigError: if ``stages`` does not fit the model.
        """
        units = expand(net, split_steps(self.units))
        self._exist(net, [*units, *(expand(net, split_steps(self.head)) if isinstance(self.head, str) else ())])
        ends = self._ends(net, units, stages)
        rows, start = [], 0
        for end in ends:
            stop = max(i for i, u in enumerate(units) if u == end or u.startswith(end + ".")) + 1
            rows.append(units[start:stop])
            start = stop
        rows[0] = [*self._present(net, self.stem), *rows[0]]
        rows[-1] = [*rows[-1], *self._present(net, self.post)]
        tail = self._present(net, self.tail)

        methods = [any(callable(_attribute(net, s)) and not _is_module(net, s) for s in row) for row in rows]
        direct = [n for n, t in (*net._parameters.items(), *net._buffers.items()) if t is not None]
        owner = methods.index(True) if any(methods) else None  # direct parameters are read by the methods
        used = {s.split(".")[0] for row in rows for s in row} | {s.split(".")[0] for s in tail}
        left = [n for n, _ in net.named_children() if n not in used] + (direct if owner is None else [])
        parts = [Segment(net, row, direct if i == owner else ()) for i, row in enumerate(rows)]
        function = step_head(*split_steps(self.head), encoder=encoder) if isinstance(self.head, str) else self.head
        pool = self._average(about.get("prefix_tokens", 0)) if _one_of(feature) == "avgpool" else None
        head = Head(net, tail, function, left, pool)
        given = {"way": "declared", "layout": self.layout, "raster": self.raster, "feature": feature, **about}
        if problems := argument_problems(StagedModel, {"net": net, "stages": parts, "head": head, **given}, "cut"):
            raise ConfigError(problems)
        return StagedModel(net, parts, head, **given)

    def _average(self, prefix_tokens: int) -> Callable[[Tensor], Tensor]:
        """The mean over the positions of an output, prefix tokens left out."""
        if self.layout == "NLC":
            return lambda x: x[:, prefix_tokens:].mean(1)
        axes = (2, 3) if self.layout == "NCHW" else (1, 2)
        return lambda x: x.mean(axes)

    def _ends(self, net: nn.Module, units: list[str], stages: int | Sequence[str] | None) -> list[str]:
        what = "stages"
        if stages is None or stages == (len(self.cuts.split()) if isinstance(self.cuts, str) else 4):
            stages, what = self.cuts.split() if isinstance(self.cuts, str) else self.cuts(net, units), "cuts"
        if isinstance(stages, int):
            if not 2 <= stages <= len(units):
                raise ConfigError(f"stages={stages}: this model can be cut into 2 to {len(units)} stages")
            return [units[-(-len(units) * (i + 1) // stages) - 1] for i in range(stages)]
        position = -1
        for name in stages:
            found = [i for i, u in enumerate(units) if u == name or u.startswith(name + ".")]
            if not found:
                known = sorted({u.rsplit(".", i)[0] for u in units for i in range(u.count(".") + 1)})
                raise ConfigError(f"{what}: no unit {name!r} to cut behind{nearest(name, known, limit=24)}")
            if found[-1] <= position:
                raise ConfigError(
                    f"{what}: {name!r} does not come after the cut before it; give them in the order they run"
                )
            position = found[-1]
        if position != len(units) - 1:
            raise ConfigError(f"{what}: the last stage must end the row; add {units[-1]!r}")
        return list(stages)

    @staticmethod
    def _exist(net: nn.Module, names: Sequence[str], or_none: bool = False) -> None:
        for name in names:
            if _plain(net, name):
                continue
            owner, _, last = name.rpartition(".")
            holder = _attribute(net, owner) if owner else net
            if not hasattr(holder, last) or (getattr(holder, last) is None and not or_none):
                methods = [n for n in dir(type(net)) if n not in dir(nn.Module)]
                raise _missing(net, "module or method", name, methods)

    def _present(self, net: nn.Module, names: str) -> list[str]:
        """The names whose part is not None: members of a family may lack some."""
        found = expand(net, split_steps(names))
        self._exist(net, found, or_none=True)
        return [name for name in found if _plain(net, name) or _attribute(net, name) is not None]


def _mean(x: Tensor, *axes: int) -> Tensor:
    """Over all positions of (N, L, D) or (N, C, H, W), or over some axes."""
    return x.mean(axes or ((1,) if x.ndim == 3 else tuple(range(2, x.ndim))))


PLAIN: dict[str, Callable[..., Tensor]] = {
    "mean": _mean,
    "flatten": lambda x, start=1: x.flatten(start),
    "token": lambda x, number: x[:, number],
    "permute": lambda x, *axes: x.permute(axes),
}
"""Steps that are no module: a network's own forward often does them. Numbers behind a name are its arguments."""


def split_steps(text: str) -> list[str]:
    """Names separated by blanks; the numbers behind one belong to it: "norm token 0 fc" is three steps."""
    steps: list[str] = []
    for word in text.split():
        if steps and re.fullmatch(r"-?\d+", word) and steps[-1].split()[0] in PLAIN:
            steps[-1] += f" {word}"
        else:
            steps.append(word)
    return steps


def _plain(net: nn.Module, step: str) -> Callable[[Tensor], Tensor] | None:
    """A step that is none of the network's own names."""
    name, *numbers = step.split()
    if name not in PLAIN or hasattr(net, name):
        return None
    return lambda x: PLAIN[name](x, *map(int, numbers))


def _step(net: nn.Module, step: str) -> Any:
    """A step as something to call, found by plain getattr, which torch.compile can see through."""
    return _plain(net, step) or _follow(net, step.split("."))


def _is_module(net: nn.Module, step: str) -> bool:
    return isinstance(_attribute(net, step), nn.Module)


def expand(net: nn.Module, names: Sequence[str]) -> list[str]:
    """Replaces ``*`` by the names of all children at that place, and ``{a,b}`` by each of the two, in order."""
    result: list[str] = []
    for name in names:
        match = re.search(r"\*|\{([^}]*)\}", name)
        if match is None:
            result.append(name)
            continue
        before, after = name[: match.start()], name[match.end() :]
        children = match[1].split(",") if match[1] else _children(net, before.rstrip("."))
        result += expand(net, [before + child + after for child in children])
    return result


def _children(net: nn.Module, name: str) -> list[str]:
    found = _attribute(net, name) if name else net
    if not isinstance(found, nn.Module):
        raise _missing(net, "module", name)
    return [n for n, _ in found.named_children()]


def _missing(net: nn.Module, what: str, name: str, methods: Sequence[str] = ()) -> ConfigError:
    known = [*(n for n, _ in net.named_modules() if n), *methods]
    return ConfigError(f"{type(net).__name__} has no {what} {name!r}{nearest(name, known, limit=24)}")


def _one_of(feature: str) -> str:
    if feature not in FEATURES:
        raise ConfigError(f"feature: {feature!r}{nearest(feature, FEATURES)}")
    return feature


def isotropic(net: nn.Module, units: list[str]) -> list[str]:
    """The units that end four stages of a row of equal blocks; see :func:`isotropic_ends`."""
    if len(units) < 4:
        raise ConfigError(
            f"{type(net).__name__}: {len(units)} blocks cannot make 4 stages; set stages to at most {len(units)}"
        )
    return [units[end - 1] for end in isotropic_ends(len(units))]


def isotropic_ends(blocks: int) -> list[int]:
    """After how many blocks the field cuts: 2 : 2 : n - 6 : 2, or distinct rounded fractions of 12 blocks.

    Args:
        blocks: at least 4.
    """
    n = blocks
    ends = [2, 4, n - 2, n] if n >= 8 else [max(1, round(n * f)) for f in (1 / 6, 1 / 3, 5 / 6, 1)]
    for i in range(3):
        ends[i] = max(ends[i], ends[i - 1] + 1 if i else 1)
    return ends


def _follow(net: nn.Module, path: Sequence[str]) -> Any:
    """A submodule or method; by plain getattr, which torch.compile can see through."""
    found: Any = net
    for part in path:
        found = getattr(found, part)
    return found


def _attribute(net: nn.Module, name: str) -> Any:
    found: Any = net
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


@dataclass(frozen=True)
class Catalogue:
    """What an architecture can build; a builder may carry one as its attribute ``catalogue``.

    Attributes:
        names: every name that the builder knows.
        kind: the module and class of the network behind a name, "resnet/ResNet".
        config: of a name, where it is more than "type", "name" and "num_classes"; such a network is built with weights.
    """

    names: Callable[[], Iterable[str]]
    kind: Callable[[str], str]
    config: Callable[[str], dict[str, Any]] | None = None
