"""The check of architectures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..distill.fusion import FusionModel
from ..distill.splice import Splice
from ..errors import short
from ..models.image_sizes import pixels
from ..models.map_order import probe_maps
from ..models.shapes import StageSpec
from ..models.staged import StagedModel
from ..models.weightless import on_meta, whole_copy
from ..registry.registries import ARCHITECTURES
from .asserting import CLOSE, built, check_device, check_registered, refused, that


def check_architecture(model: StagedModel | Mapping[str, Any], image_size: int | tuple[int, int] | None = None) -> None:
    """Checks that a model is the row of stages and head that it says it is.

    Args:
        model: or its config, as in ``model.student``; its plugin must be installed then.
        image_size: pixels, one number for a square; None is the model's own.

    Raises:
        AssertionError: if stages and head do not compute what the network computes (:meth:`StagedModel.verify`), if
            shapes are not those of ``specs``, if images of a batch are mixed, if a fusion model that runs its stages a
            second time changes what they remember, or if the model cannot be copied, saved and loaded, computed in
            float64, moved to a GPU, or (given as a config) be built without weights.
    """
    if isinstance(model, Mapping):
        config = model
        model = built(ARCHITECTURES, config)
        with (
            refused(f"{config.get('type')}: built without weights, on torch's meta device, as --check does"),
            on_meta(),
        ):
            ARCHITECTURES.build(config)
    if not isinstance(model, StagedModel):
        raise AssertionError(f"{short(model)} is no StagedModel: return one, or Declaration(...).cut(net, ...)")
    who = model.name
    that(len(model.stages) >= 2, f"{who} has {len(model.stages)} stage: a splice needs 2")
    size = model.image_size if image_size is None else pixels(image_size)
    with refused(f"{who} at {size[0]}x{size[1]} pixels"):
        model.verify(size)
        specs = model.specs_at(size)
    model = cast(StagedModel, whole_copy(model))
    for mode, batch in (("eval", 2), ("eval", 3), ("train", 4)):
        with torch.no_grad(), refused(f"{who} in {mode} mode with a batch of {batch}"):
            known = model.train(mode == "train").knowledge(_images(model, size, batch), range(1, len(specs) + 1))
        shapes = {f"stage {i} gives": (known.stages[i], spec.sizes(batch)) for i, spec in enumerate(specs, 1)}
        shapes["features are"] = (known.features, (batch, model.num_features))
        if known.logits is not None:
            shapes["logits are"] = (known.logits, (batch, model.num_classes))
        for what, (found, expected) in shapes.items():
            given = tuple(found.shape)
            that(
                given == expected,
                f"{who}: in {mode} mode {what} {given}, and specs say {expected}: a shape may not vary",
            )
    turned = probe_maps(model, model.specs_at(size), size)
    that(not turned, f"{who}: {turned}")
    _check_images(model, size, who)
    _check_copies(model.eval(), size, who)
    _check_second_run(model, size, who)
    check_device(who, model.eval(), lambda moved: moved(_images(model, size, 2).to("meta")))


def _check_copies(model: StagedModel, size: tuple[int, int], who: str) -> None:
    images = _images(model, size, 2)
    with torch.no_grad(), refused(f"a copy of {who}"):
        expected = model(images)
        twin = whole_copy(model)
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


def _check_images(model: StagedModel, size: tuple[int, int], who: str) -> None:
    """Each image for itself, and all that is trained in the model."""
    images = _images(model, size, 3)
    with torch.no_grad(), refused(f"{who} with one image in eval mode"):
        together, alone = model.eval()(images), torch.cat([model(image) for image in images.split(1)])
    that(
        torch.allclose(together, alone, **CLOSE),
        f"{who} mixes the images of a batch: in eval mode its logits for an image are others when that comes alone",
    )
    before = [name for name, _ in model.named_parameters()]
    with refused(f"{who} in train mode"):
        logits = model.train()(_images(model, size, 4))
    check_registered(who, logits, model, before, ())


class _Identities:
    def build(
        self, student_specs: Sequence[StageSpec], teacher_specs: Sequence[StageSpec], splice: Splice
    ) -> nn.ModuleDict:
        return nn.ModuleDict({junction.name: nn.Identity() for junction in splice.junctions})


def _check_second_run(model: StagedModel, size: tuple[int, int], who: str) -> None:
    """A fusion model of the model and its own twin runs its later stages: their statistics must see it alone."""
    student, teacher = whole_copy(model).train(), whole_copy(model).requires_grad_(False).eval()
    specs, images = student.specs_at(size), _images(model, size, 4)
    n = len(specs)
    with refused(f"{who} as a part of a fusion model"):
        fusion = FusionModel(
            [Splice.parse(f"T1+S2-{n}" if n > 2 else "T1+S2", n, n)],
            student,
            teacher,
            _Identities(),
            specs,
            specs,
        ).train()
        before = {name: buffer.clone() for name, buffer in student.named_buffers()}
        fusion(teacher.stage_outputs(images, [1])[1])
    for name, buffer in student.named_buffers():
        that(
            torch.equal(before[name], buffer),
            f"{who}: {name.removeprefix('net.')} changes when a fusion model runs its stage a second time: it must be "
            "a buffer that train mode updates in place, as the running statistics of BatchNorm",
        )
