"""A model as a row of stages and a head, and the proof that the row is the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .census import of_model
from .image_sizes import pixels
from .in_hand import cut_in_hand
from .knowledge import Knowledge
from .net_part import Unowned
from .proof import CLASSIFIER, SplitProof, prove
from .shapes import Shapes, StageSpec, Told, measure
from .weightless import meta_copy, whole_copy
from .writes import Writes, find_writes


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
        self._told = Told(count, layout, prefix_tokens, prefix, family, raster is not False, order)
        self.layouts, self.prefix_tokens = self._told.layouts, self._told.prefix_tokens
        self.guessed = raster is None
        self.name = name or type(net).__name__
        self.input_size = None if input_size is None else pixels(input_size)
        self.image_size = self.input_size or pixels(image_size)
        self.in_chans = in_chans
        self.mean, self.std = self._per_channel("mean", mean), self._per_channel("std", std)
        self.arguments, self.feature, self.way = dict(arguments or {}), feature, way
        self._shapes: dict[tuple[int, int], Shapes] = {}
        self._writes: Writes | None = None

    @classmethod
    def of(cls, net: nn.Module, **options: Any) -> StagedModel:
        """A network that is built already, of timm, torchvision, a plugin's library or one's own, as stages and a head.

        The network is not changed; the stages hold its modules. It is cut as the architecture that knows it would.

        Args:
            net: maps normalised images (N, C, H, W) to logits.
            options: of that architecture: ``stages``, ``mean``, ``std``, ``input_size``, ``family`` and so on, as in a
                config; ``image_size``, of the images in pixels, where the network has no size of its own.

        Raises:
            ConfigError: if it cannot be cut, or there is no such option.
            SplitError: if stages and head of a network of one's own are not the network.
        """
        model: StagedModel = cut_in_hand(net, options)
        return model

    def _per_channel(self, what: str, values: float | Sequence[float]) -> tuple[float, ...]:
        each = (values,) if isinstance(values, int | float) else tuple(values)
        if len(each) not in (1, self.in_chans):
            raise ValueError(f"{self.name}: {what} has {len(each)} values, and images have {self.in_chans} channels")
        if max(each) > 1 or (what == "std" and min(each) <= 0):
            above = "" if what == "mean" else ", and above 0"
            right = f"images come in [0, 1], so that it is at most 1{above}; divide what is meant for 0 to 255 by 255"
            raise ValueError(f"{self.name}: {what} is {max(each) if max(each) > 1 else min(each):g}, and {right}")
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
        return self._told.family or of_model(spec.family for spec in self.specs)

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
    def _widths(self) -> Shapes:
        """Shapes for a size that was asked for already, since features and logits have one width at all of them."""
        return next(iter(self._shapes.values()), None) or self._shapes_at(self.image_size)

    def macs_at(self, image_size: tuple[int, int]) -> list[int]:
        """Multiply-accumulate operations for one image: of each stage, then of the head."""
        return self._shapes_at(image_size).macs

    def _shapes_at(self, image_size: tuple[int, int]) -> Shapes:
        size = (int(image_size[0]), int(image_size[1]))
        if size not in self._shapes:
            self._shapes[size] = measure(self, self._told, size, meta_copy(self, self._shapes).eval())
        return self._shapes[size]

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
