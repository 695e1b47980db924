"""A model as a row of stages and a head, the shapes between them, and the proof that the row is the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import FBTError, PartError, nearest, text_of
from .census import FAMILIES, of_model, of_stages, take_census
from .knowledge import Knowledge
from .net_part import Unowned
from .proof import CLASSIFIER, SplitProof, prove
from .weightless import meta_copy, whole_copy
from .writes import Writes, find_writes

LAYOUTS = ("NCHW", "NHWC", "NLC")


@dataclass(frozen=True)
class StageSpec:
    """The output of one stage.

    Attributes:
        layout: "NCHW", "NHWC" or "NLC" (tokens, prefix tokens first).
        channels: width.
        grid: (height, width) in positions.
        prefix_tokens: class, distillation and register tokens before the grid's; 0 in maps.
        family: "cnn", "attention", "mlp" or "hybrid".
        raster: whether the grid's positions come row by row; where they don't, nothing may reshape them to a map.
        order: (h * w,), which of the grid's tokens stands at each position, row by row; None where ``raster`` says all.
        prefix: (prefix_tokens, channels), the model's own start values for these tokens, if it has any.
    """

    layout: str
    channels: int
    grid: tuple[int, int]
    prefix_tokens: int = 0
    family: str = "cnn"
    raster: bool = True
    prefix: Tensor | None = field(default=None, compare=False, repr=False)
    order: Tensor | None = field(default=None, compare=False, repr=False)

    def sizes(self, batch: int) -> tuple[int, ...]:
        """Sizes of the output for a batch of images."""
        h, w = self.grid
        if self.layout == "NLC":
            return batch, self.prefix_tokens + h * w, self.channels
        return (batch, self.channels, h, w) if self.layout == "NCHW" else (batch, h, w, self.channels)

    def __str__(self) -> str:
        prefix = f" + {self.prefix_tokens} prefix tokens" if self.prefix_tokens else ""
        order = "" if self.raster else ", not row by row"
        return f"{self.layout} {self.channels} x {self.grid[0]}x{self.grid[1]}{prefix}{order}"


class _Shapes(NamedTuple):
    """What a model makes of images of one size; see the properties of :class:`StagedModel`."""

    specs: list[StageSpec]
    features: int
    classes: int
    macs: list[int]
    extra: frozenset[str]


class StagedModel(nn.Module):
    """An untouched model, and the same modules once more as stages and a head.

    The model alone is part of the module tree (its parameters and buffers appear once, under ``net``); stages and head
    hold the very same modules.

    Args:
        net: the model, which maps normalised images (N, C, H, W) to logits; an encoder (a model without a classifier)
            to features (N, D).
        stages: modules that, called one after the other, give what ``head`` takes.
        head: maps the last stage's output to :class:`Knowledge`.
        layout: layout of the stages' outputs, one for all or one each.
        family: "cnn", "attention", "mlp" or "hybrid"; None reads it off what the stages compute.
        raster: whether tokens come row by row (see :class:`StageSpec`); None was read off their number, so that a proof
            must find them there.
        order: (net, grid) -> which token stands at each position of such a grid, for tokens that don't.
        image_size: (height, width) of the images in pixels that ``specs`` speaks of; one number for a square.
        prefix_tokens: prefix tokens in the stages' outputs, one number for all or one each.
        prefix: (prefix_tokens, channels), the model's own prefix tokens, where it has some.
        in_chans: image channels.
        mean, std: input normalisation, one value per channel or one for all, for images in [0, 1].
        input_size: what images are resized to before this model sees them, as ``image_size``; None leaves them alone.
        name: what messages and files call the model.
        arguments: what the model was built with, so that a file can say it.
        feature: what the head's features are: "classifier", the input of the last linear layer, to which a proof holds
            them; any other word says that they are something else on purpose.
        way: how it was cut, "declared", "traced" or "made by hand"; for people to read.
    """

    def __init__(
        self,
        net: nn.Module,
        stages: Iterable[nn.Module],
        head: nn.Module,
        *,
        layout: str | Sequence[str] = "NCHW",
        family: str | None = None,
        raster: bool | None = True,
        order: Callable[[nn.Module, tuple[int, int]], Tensor] | None = None,
        image_size: int | Sequence[int] = (224, 224),
        prefix_tokens: int | Sequence[int] = 0,
        prefix: Tensor | None = None,
        in_chans: int = 3,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        input_size: int | Sequence[int] | None = None,
        name: str = "",
        arguments: dict[str, Any] | None = None,
        feature: str = CLASSIFIER,
        way: str = "made by hand",
    ) -> None:
        super().__init__()
        self.net = net
        self._split = Unowned((nn.ModuleList(stages), head))  # every weight is in the module tree once, as ``net``'s
        count = len(self.stages)
        self.layouts = (layout,) * count if isinstance(layout, str) else tuple(layout)
        self.prefix_tokens = (prefix_tokens,) * count if isinstance(prefix_tokens, int) else tuple(prefix_tokens)
        if len(self.layouts) != count or set(self.layouts) - set(LAYOUTS):
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, or {count} of them, not {layout!r}")
        if len(self.prefix_tokens) != count or not all(isinstance(n, int) and n >= 0 for n in self.prefix_tokens):
            raise ValueError(f"prefix_tokens must be a number of tokens, or {count} of them, not {prefix_tokens!r}")
        self._prefix = None if prefix is None else prefix.detach().clone()
        if family not in (None, *FAMILIES):
            raise ValueError(f"family {family!r}{nearest(family, FAMILIES)}")
        self._family, self._raster, self._order = family, raster is not False, order
        self.guessed = raster is None
        self.name = name or type(net).__name__
        self.input_size = None if input_size is None else pixels(input_size)
        self.image_size = self.input_size or pixels(image_size)
        self.in_chans = in_chans
        self.mean, self.std = self._per_channel("mean", mean), self._per_channel("std", std)
        self.arguments, self.feature, self.way = dict(arguments or {}), feature, way
        self._shapes: dict[tuple[int, int], _Shapes] = {}
        self._writes: Writes | None = None

    def _per_channel(self, what: str, values: float | Sequence[float]) -> tuple[float, ...]:
        each = (values,) if isinstance(values, int | float) else tuple(values)
        if len(each) not in (1, self.in_chans):
            raise ValueError(f"{self.name}: {what} has {len(each)} values, and images have {self.in_chans} channels")
        return each * self.in_chans if len(each) == 1 else each

    @property
    def stages(self) -> nn.ModuleList:
        """The stages; the first takes normalised images."""
        return self._split.value[0]

    @property
    def head(self) -> nn.Module:
        """Final norm, pooling and classifier: last stage's output -> :class:`Knowledge`."""
        return self._split.value[1]

    def part(self, number: int) -> nn.Module:
        """A stage by its number from 1; one more than there are is the head."""
        return self.head if number > len(self.stages) else self.stages[number - 1]

    def _apply(self, fn: Any, recurse: bool = True) -> StagedModel:
        super()._apply(fn, recurse)
        for part in (*self.stages, self.head):  # parameters that a part lists by reference may have been replaced
            if hasattr(part, "relink"):
                part.relink()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, C, H, W) -> logits (N, classes), or an encoder's features, by stages and head."""
        return self.knowledge(images).output

    def knowledge(self, images: Tensor, needs: Iterable[int] = ()) -> Knowledge:
        """What the model knows about normalised images.

        Args:
            images: (N, C, H, W), normalised.
            needs: numbers (from 1) of the stages whose outputs are kept.
        """
        x, outputs = self._run(images, set(needs), len(self.stages))
        known = self.head(x)
        return Knowledge(known.features, known.logits, outputs, known.extra)

    def stage_outputs(self, images: Tensor, needs: Iterable[int]) -> dict[int, Tensor]:
        """Outputs of the stages in ``needs`` (from 1); no stage behind the last of them is run."""
        wanted = set(needs)
        last = max(wanted, default=0)
        x, outputs = self._run(images, wanted - {last}, last)
        return {**outputs, last: x} if wanted else outputs

    def _run(self, images: Tensor, wanted: set[int], last: int) -> tuple[Tensor, dict[int, Tensor]]:
        """The output of the last of some stages, and those of the wanted ones, as what comes behind finds them."""
        x, outputs = images, {}
        copied = self.writes.outputs if wanted else ()
        for number, stage in zip(range(1, last + 1), self.stages, strict=False):
            x = stage(x)
            if number in wanted:
                outputs[number] = x.clone() if number in copied else x
        return x, outputs

    @property
    def writes(self) -> Writes:
        """What it overwrites while it runs; found out when this is first asked for."""
        return self._writes or self._find_writes()

    @torch.compiler.disable
    def _find_writes(self) -> Writes:
        self.specs_at(size := next(iter(self._shapes), self.image_size))
        self._writes = find_writes(meta_copy(self, self._shapes), size)
        return self._writes

    @property
    def specs(self) -> list[StageSpec]:
        """Outputs of the stages for images of ``image_size``: ``specs[i]`` is that of stage i + 1."""
        return self.specs_at(self.image_size)

    def specs_at(self, image_size: tuple[int, int]) -> list[StageSpec]:
        """Outputs of the stages for images of another size.

        Raises:
            FBTError: if the model cannot take images of that size.
        """
        return self._shapes_at(image_size).specs

    @property
    def family(self) -> str:
        """ "cnn", "attention", "mlp" or "hybrid": what it was declared to be, or that of its stages."""
        return self._family or of_model(spec.family for spec in self.specs)

    @property
    def num_features(self) -> int:
        """Width D of ``Knowledge.features``."""
        return self._widths.features

    @property
    def num_classes(self) -> int:
        """Number of logits C; 0 of an encoder."""
        return self._widths.classes

    @property
    def extra(self) -> frozenset[str]:
        """Names of what its head tells besides, in ``Knowledge.extra``."""
        return self._widths.extra

    @property
    def _widths(self) -> _Shapes:
        """Shapes for a size that was asked for already, since features and logits have one width at all of them."""
        return next(iter(self._shapes.values()), None) or self._shapes_at(self.image_size)

    def macs_at(self, image_size: tuple[int, int]) -> list[int]:
        """Multiply-accumulate operations for one image: of each stage, then of the head."""
        return self._shapes_at(image_size).macs

    def _shapes_at(self, image_size: tuple[int, int]) -> _Shapes:
        """Shapes by running a weightless copy on the meta device."""
        size = (int(image_size[0]), int(image_size[1]))
        if size not in self._shapes:
            shadow = meta_copy(self, self._shapes).eval()
            x: Any = torch.empty(1, self.in_chans, *size, device="meta")
            outputs, counted = [], []
            for i, part in enumerate((*shadow.stages, shadow.head), 1):
                if not isinstance(x, Tensor):
                    what = f"has a stage {i - 1} that gives a {type(x).__name__}, not one tensor: cut where one passes"
                    raise PartError(self.name, what)
                try:
                    x, census = take_census(part, x, shadow.parameters())
                except Exception as error:
                    where = "its head" if part is shadow.head else f"its stage {i}"
                    raise FBTError(self._refusal(size, where, error)) from error
                outputs.append(x)
                counted.append(census)
            *maps, known = outputs
            if not isinstance(known, Knowledge):
                what = f"has a head that gives a {type(known).__name__}, not Knowledge(features, logits)"
                raise PartError(self.name, what)
            if known.features.ndim != 2 or known.output.ndim != 2:
                logits = "no logits" if known.logits is None else f"logits {tuple(known.logits.shape)}"
                given = f"features {tuple(known.features.shape)} and {logits} for one image"
                raise PartError(self.name, f"has a head that gives {given}, not (N, D) and (N, classes)")
            families = of_stages([census.family for census in counted[:-1]])
            specs = [self._spec(i, x, families[i], size) for i, x in enumerate(maps)]
            self._check_prefix(specs)
            macs = [census.macs for census in counted]
            classes = 0 if known.logits is None else known.logits.shape[1]
            self._shapes[size] = _Shapes(specs, known.features.shape[1], classes, macs, frozenset(known.extra))
        return self._shapes[size]

    def _refusal(self, size: tuple[int, int], where: str, error: Exception) -> str:
        reason = f"{where}: {text_of(error) or type(error).__name__}"
        line = f"{self.name} cannot take images of {size[0]}x{size[1]} pixels ({reason})"
        if size == self.image_size:  # no other size would help
            return f"{line}, which is the size that it is said to be made for"
        return f"{line}; set input_size to resize them, or the model's own image size where it has such an argument"

    def _spec(self, i: int, output: Tensor, family: str, size: tuple[int, int]) -> StageSpec:
        layout, prefix_tokens, shape = self.layouts[i], self.prefix_tokens[i], tuple(output.shape)
        if len(shape) != len(layout):
            raise PartError(
                self.name, f"has a stage {i + 1} that gives a tensor of shape {shape}, which is not {layout}"
            )
        if layout == "NLC":
            grid, channels = self._grid(i, shape[1], size), shape[2]
        elif layout == "NHWC":
            grid, channels = (shape[1], shape[2]), shape[3]
        else:
            grid, channels = (shape[2], shape[3]), shape[1]
        other = {"NCHW": shape[1:3], "NHWC": shape[2:4]}.get(layout)
        if other and not proportional(grid, size) and proportional(other, size):
            correct = "NHWC" if layout == "NCHW" else "NCHW"
            what = f"has a stage {i + 1} of {_by(shape[1:])} per image: as {layout} a grid of {_by(grid)}"
            raise PartError(
                self.name, f"{what} of {_by(size)} pixels, as {correct} {_by(other)}; set layout to {correct!r}"
            )
        own = self._prefix
        prefix = own if own is not None and tuple(own.shape) == (prefix_tokens, channels) else None
        raster = self._raster or layout != "NLC"
        order = None if raster or self._order is None else self._order(self.net, grid)
        if order is not None and tuple(order.shape) != (grid[0] * grid[1],):
            raise PartError(self.name, f"has an order of {tuple(order.shape)} token numbers for a grid of {_by(grid)}")
        return StageSpec(layout, channels, grid, prefix_tokens, self._family or family, raster, prefix, order)

    def _grid(self, i: int, tokens: int, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of a stage's tokens, which has the image's proportions."""
        if grid := grid_of(tokens - self.prefix_tokens[i], size):
            return grid
        prefix = self.prefix_tokens[i]
        what = f"has a stage {i + 1} of {tokens} tokens, which without {prefix} prefix tokens make no grid of the "
        what += f"proportions of {_by(size)} pixels"
        for count in range(min(tokens, 17)):
            if grid := grid_of(tokens - count, size):
                what += f"; prefix_tokens={count} would leave {_by(grid)}"
                break
        raise PartError(self.name, what)

    def _check_prefix(self, specs: Sequence[StageSpec]) -> None:
        """Start values that fit none of the stages would be missed by nobody."""
        with_tokens = [spec for spec in specs if spec.prefix_tokens]
        if self._prefix is not None and with_tokens and all(spec.prefix is None for spec in with_tokens):
            wanted = " or ".join(sorted({str((spec.prefix_tokens, spec.channels)) for spec in with_tokens}))
            raise PartError(self.name, f"has a prefix of shape {tuple(self._prefix.shape)}, not {wanted}")

    def verify(self, image_size: int | tuple[int, int] | None = None, seed: int = 0) -> SplitProof:
        """Proves on perturbed copies that stages and head are the model, and that what it tells of them is so.

        The network is compared with itself; then outputs, gradients and buffers with those of stages and head, in eval
        mode, in two steps of training and in eval mode again; each stage's output with what is kept of it; features
        with the input of the last linear layer (an encoder's are its output); and the order of tokens with what a
        changed patch changes.

        Args:
            image_size: pixels, one number for a square; None is the model's own size.
            seed: of the perturbation and the images.

        Raises:
            SplitError: with what differs.
        """
        size = self.image_size if image_size is None else pixels(image_size)
        self.specs_at(size)  # what is wrong with a stage or the head is said in plainer words here
        return prove(self, size, seed)


def partial_copy(model: StagedModel, numbers: Iterable[int]) -> StagedModel:
    """A copy with tensors of its own in some parts; all others are the model's own, and cost no memory.

    Args:
        model: to copy; with all its modules, for a part may look at any of them.
        numbers: of the parts, see :meth:`StagedModel.part`.
    """
    parts = [model.part(number) for number in numbers]
    own = {id(tensor) for part in parts for tensor in (*part.parameters(), *part.buffers())}
    shared = {id(t): t for t in (*model.parameters(), *model.buffers()) if id(t) not in own}
    return whole_copy(model, shared)


def _by(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def pixels(size: int | Sequence[int]) -> tuple[int, int]:
    """An image size as (height, width); one number is a square.

    Raises:
        ValueError: if it is neither.
    """
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"an image size is a number of pixels or (height, width), not {size!r}")
    return pair


def resized(images: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Images (N, C, H, W) in [0, 1] at a model's ``input_size``; None leaves them as they are."""
    if size is None or images.shape[2:] == size:
        return images
    return nn.functional.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)


def proportional(grid: Sequence[int], image_size: tuple[int, int]) -> bool:
    """Whether a grid has an image's proportions, up to rounding where the image is not square."""
    (h, w), (height, width) = grid, image_size
    if h > height or w > width:
        return False
    return h == w if height == width else abs(h * width - w * height) <= max(height, width)


def grid_of(tokens: int, image_size: tuple[int, int]) -> tuple[int, int] | None:
    """The factors (h, w) of a token count whose ratio is nearest to the image's; None if none are proportional."""
    ratio = math.log(image_size[0] / image_size[1])
    pairs = [(h, tokens // h) for h in range(1, tokens + 1) if tokens % h == 0]
    fitting = [pair for pair in pairs if proportional(pair, image_size)]
    return min(fitting, key=lambda p: abs(math.log(p[0] / p[1]) - ratio), default=None)
