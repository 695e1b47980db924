"""The check of architectures."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import short
from ..models.staged import StagedModel, pixels
from ..registry.registries import ARCHITECTURES
from .asserting import built, refused, that


def check_architecture(model: StagedModel | Mapping[str, Any], image_size: int | tuple[int, int] | None = None) -> None:
    """Checks that a model is the row of stages and head that it says it is.

    Args:
        model: or its config, as in ``model.student``; its plugin must be installed then.
        image_size: pixels, one number for a square; None is the model's own.

    Raises:
        AssertionError: if stages and head do not compute what the network computes, if shapes are not those of
            ``specs``, or if the model cannot be copied, saved and loaded, or computed in float64.
    """
    model = built(ARCHITECTURES, model)
    if not isinstance(model, StagedModel):
        raise AssertionError(f"{short(model)} is no StagedModel: return one, or Declaration(...).cut(net, ...)")
    who = model.name
    that(len(model.stages) >= 2, f"{who} has {len(model.stages)} stage: a splice needs 2")
    size = model.image_size if image_size is None else pixels(image_size)
    with refused(f"{who} at {size[0]}x{size[1]} pixels"):
        model.verify(size)
        specs = model.specs_at(size)
    model = copy.deepcopy(model)
    for mode, batch in (("eval", 2), ("eval", 3), ("train", 4)):
        with torch.no_grad(), refused(f"{who} in {mode} mode with a batch of {batch}"):
            known = model.train(mode == "train").knowledge(_images(model, size, batch), range(1, len(specs) + 1))
        shapes = {f"stage {i} gives": (known.stages[i], spec.sizes(batch)) for i, spec in enumerate(specs, 1)}
        shapes["features are"] = (known.features, (batch, model.num_features))
        shapes["logits are"] = (known.logits, (batch, model.num_classes))
        for what, (found, expected) in shapes.items():
            given = tuple(found.shape)
            that(
                given == expected,
                f"{who}: in {mode} mode {what} {given}, and specs say {expected}: a shape may not vary",
            )
    _check_copies(model.eval(), size, who)


def _check_copies(model: StagedModel, size: tuple[int, int], who: str) -> None:
    images = _images(model, size, 2)
    with torch.no_grad(), refused(f"a copy of {who}"):
        expected = model(images)
        twin = copy.deepcopy(model)
        shared = {id(p) for p in model.parameters()} & {
            id(p) for s in (*twin.stages, twin.head) for p in s.parameters()
        }
        that(not shared, f"{who}: the stages of a copy (copy.deepcopy) still hold parameters of the original")
        for tensor in twin.state_dict().values():
            tensor.zero_()
        twin.load_state_dict(model.state_dict())
        same = torch.equal(twin(images), expected)
        that(
            same,
            f"{who}: it computes something else when it has loaded its own state dict",
        )
        double = twin.double()(images.double())
        that(
            double.dtype == torch.float64,
            f"{who}: in float64 its logits are {double.dtype}: it converts or creates a tensor of its own type",
        )


def _images(model: StagedModel, size: tuple[int, int], batch: int) -> Tensor:
    return torch.randn(batch, model.in_chans, *size, generator=torch.Generator().manual_seed(0))
