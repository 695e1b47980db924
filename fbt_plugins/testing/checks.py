"""What a plugin's parts must do, checked. Each check raises an AssertionError of one line that says what is wrong.

The pytest plugin that comes with us offers them as fixtures of the same names.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..distill.fusion import FusionStrategy, ends, junction_problem
from ..distill.loss_contract import ModelInfo, check_extra, check_stages, loss_needs, set_up, value_fault, wanted_stages
from ..distill.splice import Splice
from ..errors import FBTError, described, short
from ..models.knowledge import Batch, Knowledge
from ..models.staged import LAYOUTS, StagedModel, StageSpec, pixels
from ..registry.loading import Plugins, load_plugins
from ..registry.registries import ARCHITECTURES, FUSIONS, LOSSES, PluginRegistry, Registries

SPLICES = ("S1-3+T4", "T1-3+S4", "S1-2+T3-4", "S1+T2+S3-4", "S1-4+Thead")
CLASSES = 5
EXTRA = ("class_logits", "distillation_logits")

MODELS: dict[str, list[StageSpec]] = {
    "maps": [StageSpec("NCHW", c, (g, g)) for c, g in ((8, 16), (12, 8), (16, 4), (24, 2))],
    "maps, channels last": [
        StageSpec("NHWC", c, (h, w), family="attention") for c, h, w in ((8, 9, 12), (16, 5, 6), (24, 3, 3), (40, 1, 1))
    ],
    "tokens": [StageSpec("NLC", 20, (4, 6), family="mlp")] * 4,
    "tokens and two prefix tokens": [StageSpec("NLC", 12, (5, 5), 2, family="attention", prefix=torch.ones(2, 12))] * 4,
}
"""Outputs of four stages each, in every layout; no grid and no width fits another's."""


def isolated_plugins() -> Plugins:
    """A plugin manager with registries of its own that hold nothing yet, whatever is installed."""
    return Plugins(Registries.empty())


# ---- architectures ---------------------------------------------------------------------------------------------------


def check_architecture(model: StagedModel | Mapping[str, Any], image_size: int | tuple[int, int] | None = None) -> None:
    """Checks that a model is the row of stages and head that it says it is.

    Args:
        model: or its config, as in ``model.student``; its plugin must be installed then.
        image_size: pixels, one number for a square; None is the model's own.

    Raises:
        AssertionError: if stages and head do not compute what the network computes, if shapes are not those of
            ``specs``, or if the model cannot be copied, saved and loaded, or computed in float64.
    """
    model = _built(ARCHITECTURES, model)
    if not isinstance(model, StagedModel):
        raise AssertionError(f"{short(model)} is no StagedModel: return one, or Declaration(...).cut(net, ...)")
    who = model.name
    _that(len(model.stages) >= 2, f"{who} has {len(model.stages)} stage: a splice needs 2")
    size = model.image_size if image_size is None else pixels(image_size)
    with _refused(f"{who} at {size[0]}x{size[1]} pixels"):
        model.verify(size)
        specs = model.specs_at(size)
    model = copy.deepcopy(model)
    for mode, batch in (("eval", 2), ("eval", 3), ("train", 4)):
        with torch.no_grad(), _refused(f"{who} in {mode} mode with a batch of {batch}"):
            known = model.train(mode == "train").knowledge(_images(model, size, batch), range(1, len(specs) + 1))
        shapes = {f"stage {i} gives": (known.stages[i], spec.sizes(batch)) for i, spec in enumerate(specs, 1)}
        shapes["features are"] = (known.features, (batch, model.num_features))
        shapes["logits are"] = (known.logits, (batch, model.num_classes))
        for what, (found, expected) in shapes.items():
            given = tuple(found.shape)
            _that(
                given == expected,
                f"{who}: in {mode} mode {what} {given}, and specs say {expected}: a shape may not vary",
            )
    _check_copies(model.eval(), size, who)


def _check_copies(model: StagedModel, size: tuple[int, int], who: str) -> None:
    images = _images(model, size, 2)
    with torch.no_grad(), _refused(f"a copy of {who}"):
        expected = model(images)
        twin = copy.deepcopy(model)
        shared = {id(p) for p in model.parameters()} & {
            id(p) for s in (*twin.stages, twin.head) for p in s.parameters()
        }
        _that(not shared, f"{who}: the stages of a copy (copy.deepcopy) still hold parameters of the original")
        for tensor in twin.state_dict().values():
            tensor.zero_()
        twin.load_state_dict(model.state_dict())
        same = torch.equal(twin(images), expected)
        _that(
            same,
            f"{who}: it computes something else when it has loaded its own state dict",
        )
        double = twin.double()(images.double())
        _that(
            double.dtype == torch.float64,
            f"{who}: in float64 its logits are {double.dtype}: it converts or creates a tensor of its own type",
        )


def _images(model: StagedModel, size: tuple[int, int], batch: int) -> Tensor:
    return torch.randn(batch, model.in_chans, *size, generator=torch.Generator().manual_seed(0))


# ---- fusions ---------------------------------------------------------------------------------------------------------


def check_fusion(
    strategy: FusionStrategy | Mapping[str, Any],
    layouts: Sequence[str] = LAYOUTS,
    splices: Sequence[str] = SPLICES,
) -> None:
    """Checks that a strategy joins models of all layouts, grids and widths.

    Args:
        strategy: or its config, as in ``model.fusion`` without ``splice``; its plugin must be installed then.
        layouts: that it is made for; models with another are left out.
        splices: of two models of four stages.

    Raises:
        AssertionError: if a junction is missing or gives another shape than the next stage takes, if something is not
            finite, if a gradient does not reach the input and every parameter, or if prefix tokens before a head do
            not depend on the input.
    """
    strategy = _built(FUSIONS, strategy)
    if isinstance(strategy, Mapping) or not callable(getattr(strategy, "build", None)):
        raise AssertionError(f"{short(strategy)} has no build(student_specs, teacher_specs, splice)")
    models = {name: specs for name, specs in MODELS.items() if specs[0].layout in layouts}
    _that(bool(models), f"layouts={layouts!r}: give some of {', '.join(LAYOUTS)}")
    for splice in map(Splice.parse, splices):
        for student_name, student in models.items():
            for teacher_name, teacher in models.items():
                _check_splice(
                    strategy, student, teacher, splice, f"student of {student_name}, teacher of {teacher_name}"
                )


def _check_splice(
    strategy: FusionStrategy, student: Sequence[StageSpec], teacher: Sequence[StageSpec], splice: Splice, pair: str
) -> None:
    who = f"{type(strategy).__name__} ({splice}, {pair})"
    with _refused(f"{who}: build"):
        junctions = strategy.build(student, teacher, splice)
    problem = junction_problem(junctions, student, teacher, splice)
    _that(problem is None, f"{who} {problem}")
    for junction in splice.junctions:
        source, target = ends(junction, student, teacher)
        module = junctions[junction.name].train()
        where = f"{who}: junction {junction.name} from {source} to {target}"
        x = torch.randn(source.sizes(3), generator=torch.Generator().manual_seed(0)).requires_grad_()
        with _refused(where):
            y = module(x)
        given = tuple(y.shape)
        _that(
            given == target.sizes(3), f"{where} gives {given} for a batch of 3; the next stage takes {target.sizes(3)}"
        )
        _that(bool(y.isfinite().all()), f"{where} gives values that are not finite")
        _that(y.requires_grad, f"{where}: no gradient leads back from what it gives")
        into_head = junction.first > len(student if junction.taker == "S" else teacher)
        for token in range(target.prefix_tokens if into_head else 0):
            (told,) = torch.autograd.grad(y[:, token].square().sum(), x, None, True, allow_unused=True)
            _that(
                told is not None and bool((told.flatten(1).abs().sum(1) > 0).all()),
                f"{where}: the prefix tokens that it gives are the same for all images; a head may look at these "
                "alone, so they must come from what arrives",
            )
        (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
        _check_gradients(where, {"what arrives": x}, module)
        reached = (x.grad.flatten(1).abs().sum(1) > 0).all()  # type: ignore[union-attr]
        _that(bool(reached), f"{where}: no gradient reaches what arrives")


# ---- losses ----------------------------------------------------------------------------------------------------------


def check_loss(loss: nn.Module | Mapping[str, Any], task: bool = False) -> None:
    """Checks a loss on random knowledge of two models, in the precisions and with the labels that it will meet.

    Args:
        loss: or its config, as in ``model.logit_loss``; its plugin must be installed then.
        task: whether it is a task loss, which is given no teacher.

    Raises:
        AssertionError: if its value is not a finite scalar, if a gradient is missing or goes to the teacher, if it
            changes what it is given, computes in half precision, or depends on the order of the batch.
    """
    loss = _built(LOSSES, loss)
    if not isinstance(loss, nn.Module):
        raise AssertionError(f"{short(loss)} is no torch.nn.Module")
    _LossCheck(loss, task).run()


class _LossCheck:
    def __init__(self, loss: nn.Module, task: bool) -> None:
        self.loss, self.task, self.who = copy.deepcopy(loss), task, type(loss).__name__
        with _refused(self.who):
            needs = loss_needs(loss, self.who)
        self.min_batch = needs.get("min_batch", 1)
        of_student, of_teacher = wanted_stages(needs)
        self.widths = (6, 6) if needs.get("same_width") else (6, 8)
        specs = MODELS["maps"], MODELS["tokens and two prefix tokens"]
        student, teacher = (ModelInfo(*pair, extra=EXTRA) for pair in zip(specs, self.widths, strict=True))
        with _refused(self.who):
            check_stages(of_student, self.who, "check_loss", "student", student)
            check_extra(needs, self.who, "check_loss", "student", student)
        self.shown = {i: specs[0][i - 1] for i in of_student}, {i: specs[1][i - 1] for i in of_teacher}
        with _refused(f"{self.who}.setup"):
            info, giver = {"num_classes": CLASSES, "num_samples": 32}, None if task else teacher
            set_up(self.loss, student, giver, info)

    def run(self) -> None:
        value = self.value()
        wrong = value_fault(value)
        _that(wrong is None, f"{self.who} {wrong}")
        _that(
            value.dtype == torch.float32, f"{self.who}: its value is {value.dtype} for float32 knowledge, not float32"
        )
        self._gradients()
        self._labels()
        self._precisions()
        order = torch.tensor([2, 0, 3, 1])
        turned = self.value(order=order)
        _that(
            torch.allclose(value, turned, rtol=1e-4, atol=1e-6),
            f"{self.who}: its value is {value:.6g}, and {turned:.6g} when the same images come in another order",
        )

    def value(
        self,
        batch: Batch | None = None,
        dtype: torch.dtype = torch.float32,
        size: int = 4,
        scale: float = 1.0,
        order: Tensor | None = None,
        knowledge: tuple[Knowledge, Knowledge] | None = None,
        loss: nn.Module | None = None,
    ) -> Tensor:
        """Of a copy unless a loss is given, so that no bank or statistic remembers the last call."""
        student, teacher = knowledge or (self.student(size, dtype, scale), self.teacher(size, dtype, scale))
        batch = batch or Batch(torch.arange(size) % CLASSES, torch.arange(size))
        if order is not None:
            student, teacher = (_map(k, lambda x: x[order]) for k in (student, teacher))
            batch = Batch(batch.labels[order], batch.index[order])  # type: ignore[index]
        if loss is None:
            loss = copy.deepcopy(self.loss).to(torch.float64 if dtype == torch.float64 else torch.float32)
        torch.manual_seed(0)
        with _refused(f"{self.who} with a batch of {size} in {dtype}"):
            return loss(student, None if self.task else teacher, batch)

    def student(self, size: int = 4, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Knowledge:
        known = self._random(0, size, dtype, scale)
        return _map(known, lambda x: x.requires_grad_())

    def teacher(self, size: int = 4, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Knowledge:
        return self._random(1, size, dtype, scale)

    def _random(self, model: int, size: int, dtype: torch.dtype, scale: float) -> Knowledge:
        """Of the student (0) or the teacher (1)."""
        generator = torch.Generator().manual_seed(model)

        def values(*shape: int) -> Tensor:
            return (scale * torch.randn(shape, generator=generator)).to(dtype)

        stages = {i: values(*spec.sizes(size)) for i, spec in self.shown[model].items()}
        features, logits = values(size, self.widths[model]), values(size, CLASSES)
        return Knowledge(features, logits, stages, {name: values(size, CLASSES) for name in EXTRA})

    def _gradients(self) -> None:
        for scale, kind in ((1.0, "random"), (0.0, "all-zero"), (1e4, "large")):
            student, teacher, loss = self.student(scale=scale), self.teacher(scale=scale), copy.deepcopy(self.loss)
            before = [x.detach().clone() for x in (*_tensors(student), *_tensors(teacher))]
            value = self.value(knowledge=(student, teacher), loss=loss)
            _that(bool(value.isfinite()), f"{self.who}: its value is {value} for {kind} features and logits")
            value.backward()
            _that(
                all(map(torch.equal, before, (*_tensors(student), *_tensors(teacher)))),
                f"{self.who} changes what it is given in place",
            )
            for tensor in _tensors(student):
                finite = tensor.grad is None or bool(tensor.grad.isfinite().all())
                _that(finite, f"{self.who}: a gradient of the student is not finite for {kind} features and logits")
            if scale == 1:
                reached = any(x.grad is not None and bool(x.grad.any()) for x in _tensors(student))
                _that(reached, f"{self.who}: no gradient reaches the student's features, logits or stages")
            _check_gradients(self.who, {}, loss)

    def _labels(self) -> None:
        if self.min_batch == 1:
            one = self.value(size=1)
            _that(bool(one.isfinite()), f"{self.who}: its value is {one} for a batch of one image")
            with _refused(f"{self.who} with a batch of one image"):
                one.backward()
        soft = self.value(Batch(torch.full((4, CLASSES), 1 / CLASSES), torch.arange(4)))
        _that(
            soft.ndim == 0 and bool(soft.isfinite()),
            f"{self.who}: its value is {short(soft)} for soft labels (N, classes)",
        )
        loss = copy.deepcopy(self.loss)
        for what, teacher, batch in (
            ("no labels (batch.labels is None)", None if self.task else self.teacher(), Batch(None)),
            ("no teacher (as a task loss)", None, Batch(torch.arange(4), torch.arange(4))),
        ):
            try:
                loss(self.student(), teacher, batch)
            except (ValueError, FBTError):  # a clear refusal
                pass
            except Exception as error:
                raise AssertionError(
                    f"{self.who} raises {described(error)} for {what}: raise a ValueError that says so"
                ) from error

    def _precisions(self) -> None:
        for dtype in (torch.bfloat16, torch.float16):
            known = self.student(dtype=dtype), self.teacher(dtype=dtype)
            exact = self.value(knowledge=(_map(known[0], Tensor.float), _map(known[1], Tensor.float)))
            with torch.autocast("cpu", dtype):
                value = self.value(knowledge=known)
            close = 0.01 if getattr(self.loss, "autocast", False) else 0  # the same numbers give the same bits
            same = value.dtype == torch.float32 and torch.allclose(value, exact, rtol=close, atol=0)
            _that(
                same,
                f"{self.who}: {value:.9g} ({value.dtype}) for {dtype} under autocast, {exact:.9g} in float32: compute "
                "inside of `with full_precision(...)`, or say `autocast = True` of a loss whose networks run in the "
                "run's precision",
            )
        double = self.value(dtype=torch.float64)
        _that(double.dtype == torch.float64, f"{self.who}: its value is {double.dtype} for float64 knowledge")


def _map(known: Knowledge, function: Callable[[Tensor], Tensor]) -> Knowledge:
    stages = {i: function(x) for i, x in known.stages.items()}
    extra = {name: function(x) for name, x in known.extra.items()}
    return Knowledge(function(known.features), function(known.logits), stages, extra)


def _tensors(known: Knowledge) -> list[Tensor]:
    return [known.features, known.logits, *known.stages.values(), *known.extra.values()]


# ---- all -------------------------------------------------------------------------------------------------------------


def _built(registry: PluginRegistry, part: Any) -> Any:
    if not isinstance(part, Mapping):
        return part
    load_plugins()
    return registry.build(part)


def _that(holds: bool, message: str) -> None:
    """An assertion that ``python -O`` does not remove."""
    if not holds:
        raise AssertionError(message)


@contextmanager
def _refused(what: str) -> Iterator[None]:
    """Whatever is raised in here is a failed check."""
    try:
        yield
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"{what}: {error if isinstance(error, FBTError) else described(error)}") from error


def _check_gradients(who: str, inputs: Mapping[str, Tensor], module: nn.Module) -> None:
    """Gradients of inputs and trained parameters must be there, for DDP waits for each, and be finite."""
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    for name, tensor in (*inputs.items(), *trained.items()):
        _that(tensor.grad is not None, f"{who}: no gradient reaches {name}")
        _that(bool(tensor.grad.isfinite().all()), f"{who}: the gradient of {name} is not finite")  # type: ignore[union-attr]
