"""The check of losses."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..distill.loss_contract import ModelInfo, check_extra, check_stages, loss_needs, set_up, value_fault, wanted_stages
from ..errors import FBTError, described, short
from ..models.knowledge import Batch, Knowledge
from ..models.shapes import StageSpec
from ..models.weightless import on_meta, whole_copy
from ..randomness import seeded
from ..registry.registries import LOSSES
from .asserting import built, check_device, check_gradients, check_registered, put, refused, state_of, that
from .loss_positions import wrong_positions
from .samples import CLASSES, EXTRA, MODELS, mapped, on_the_way, random_tensors, tensors, weightless
from .students import BOUND, better_and_worse, knowledge_of, trained_down

CPU = torch.device("cpu")
COPIES = 4
"""How often the images of a batch are repeated to see what a larger batch does."""
GROWTH = 1.5
"""A mean stays as it is then, about so does what compares images with each other; a norm of all grows by the root of
COPIES, a sum by COPIES, and a mean of what a softmax along the batch gives shrinks by it."""
FEWEST = 0.25
"""Of the images of a batch: so many at least tell the student something, where a loss picks some of them."""


def check_loss(loss: nn.Module | Mapping[str, Any], task: bool = False) -> None:
    """Checks a loss on random knowledge of two models, in the precisions and with the labels that it will meet.

    Args:
        loss: or its config, as in ``model.logit_loss``; its plugin must be installed then.
        task: whether it is a task loss, which is given no teacher.

    Raises:
        AssertionError: if its value is no finite scalar, depends on the order of the batch, grows with its size or
            looks at a fixed number of images; if it teaches a few positions of a stage only, or takes them from other
            places of the teacher's; if it is smaller for a worse student; if it draws random numbers unsaid,
            or remembers what a resumed run would not know; if a gradient is missing, is another one where the teacher
            requires one, or is asked of a constant teacher; if it changes what it is given, computes in half precision,
            or cannot be moved to a GPU or be set up without weights.

    A teacher that requires gradients is right to get them: whether a giver is a constant is for its edge to say, and an
    edge with ``detach=False`` trains its giver. A loss that gives it none may do so by definition, and is warned.
    """
    loss = built(LOSSES, loss)
    if not isinstance(loss, nn.Module):
        raise AssertionError(f"{short(loss)} is no torch.nn.Module")
    _LossCheck(loss, task).run()


class _LossCheck:
    def __init__(self, loss: nn.Module, task: bool) -> None:
        self.bare, self.task, self.who = loss, task, type(loss).__name__
        with refused(self.who):
            self.needs = loss_needs(loss, self.who)
        self.size = max(4, self.least)
        self.widths = (6, 6) if self.needs.get("same_width") else (6, 8)
        self.specs = MODELS["maps"], MODELS["tokens and two prefix tokens"]
        self.loss = self._set_up(self.specs, self.widths)
        wanted = wanted_stages(self.needs)
        self.shown = [{i: specs[i - 1] for i in stages} for specs, stages in zip(self.specs, wanted, strict=True)]

    @property
    def least(self) -> int:
        """Images in the smallest batch that it takes."""
        return int(self.needs.get("min_batch", 1))

    def _set_up(self, specs: Sequence[list[StageSpec]], widths: tuple[int, int], samples: int = 32) -> nn.Module:
        """A copy of the loss between two models."""
        loss = whole_copy(self.bare)
        student, teacher = (ModelInfo(*pair, extra=EXTRA) for pair in zip(specs, widths, strict=True))
        with refused(self.who):
            check_stages(wanted_stages(self.needs)[0], self.who, "check_loss", "student", student)
            check_extra(self.needs, self.who, "check_loss", "student", student)
        with refused(f"{self.who}.setup"):
            set_up(loss, student, None if self.task else teacher, {"num_classes": CLASSES, "num_samples": samples})
        return loss

    def run(self) -> None:
        loss = whole_copy(self.loss)
        before = [name for name, _ in loss.named_parameters()]
        student, teacher = self.student(), self.teacher()
        value = self.value(knowledge=(student, teacher), loss=loss)
        wrong = value_fault(value, CPU)
        that(wrong is None, f"{self.who} {wrong}")
        that(value.dtype == torch.float32, f"{self.who}: its value is {value.dtype} for float32 knowledge, not float32")
        self._randomness()
        check_registered(self.who, value, loss, before, (*tensors(student), *tensors(teacher)))
        self._gradients()
        self._teacher()
        self._labels()
        order = torch.arange(self.size).roll(1).reshape(2, -1).flip(0).flatten() if self.size % 2 == 0 else None
        order = torch.arange(self.size).flip(0) if order is None else order
        turned = self.value(order=order)
        that(
            torch.allclose(value, turned, rtol=1e-4, atol=1e-6),
            f"{self.who}: its value is {value:.6g}, and {turned:.6g} when the same images come in another order",
        )
        self._positions()
        self._sizes()
        self._precisions()
        self._memory()
        self._direction()
        check_device(self.who, self.loss, self._on_meta)
        with on_meta():
            self._set_up([weightless(specs) for specs in self.specs], self.widths, samples=1)

    # ---- what it is given --------------------------------------------------------------------------------------------

    def value(
        self,
        batch: Batch | None = None,
        dtype: torch.dtype = torch.float32,
        size: int | None = None,
        scale: float = 1.0,
        order: Tensor | None = None,
        knowledge: tuple[Knowledge, Knowledge] | None = None,
        loss: nn.Module | None = None,
        seed: int = 0,
    ) -> Tensor:
        """Of a copy unless a loss is given, so that no bank or statistic remembers the last call."""
        size = size or self.size
        student, teacher = knowledge or (self.student(size, dtype, scale), self.teacher(size, dtype, scale))
        batch = batch or self.batch(size)
        if order is not None:
            student, teacher = (mapped(k, lambda x: x[order]) for k in (student, teacher))
            batch = Batch(batch.labels[order], batch.index[order])  # type: ignore[index]
        if loss is None:
            loss = whole_copy(self.loss).to(torch.float64 if dtype == torch.float64 else torch.float32)
        works = "" if size == self.size else f", where one of {self.size} works"
        with refused(f"{self.who} with a batch of {size} in {dtype}{works}"), seeded(seed):
            return loss(student, None if self.task else teacher, batch)

    def batch(self, size: int) -> Batch:
        return Batch(torch.arange(size) % CLASSES, torch.arange(size))

    def student(self, size: int | None = None, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Knowledge:
        return mapped(self._random(0, size, dtype, scale), lambda x: x.requires_grad_())

    def teacher(self, size: int | None = None, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Knowledge:
        return self._random(1, size, dtype, scale)

    def _random(self, model: int, size: int | None, dtype: torch.dtype, scale: float) -> Knowledge:
        """Of the student (0) or the teacher (1)."""
        make, size = random_tensors(model), size or self.size
        stages = {i: make(*spec.sizes(size)) for i, spec in self.shown[model].items()}
        features, logits = make(size, self.widths[model]), make(size, CLASSES)
        known = Knowledge(features, logits, stages, {name: make(size, CLASSES) for name in EXTRA})
        return mapped(known, lambda x: (scale * x).to(dtype))

    def _other_images(self, step: int) -> tuple[Knowledge, Knowledge]:
        """Each image in another place of the batch in each step, of other values."""
        return self.student(scale=1 + 0.1 * step), mapped(self.teacher(), lambda x: (1 + 0.1 * step) * x.roll(step, 0))

    # ---- what it does with it ----------------------------------------------------------------------------------------

    def _gradients(self) -> None:
        for scale, kind in ((1.0, "random"), (0.0, "all-zero"), (1e4, "large")):
            student, teacher, loss = self.student(scale=scale), self.teacher(scale=scale), whole_copy(self.loss)
            given = mapped(student, on_the_way), mapped(teacher, on_the_way)
            value = self.value(knowledge=given, loss=loss)
            that(bool(value.isfinite()), f"{self.who}: its value is {value} for {kind} features and logits")
            with refused(f"{self.who}: backward"):
                value.backward()
            pairs = zip((*tensors(student), *tensors(teacher)), (*tensors(given[0]), *tensors(given[1])), strict=True)
            that(all(torch.equal(*pair) for pair in pairs), f"{self.who} changes what it is given in place")
            for tensor in tensors(student):
                finite = tensor.grad is None or bool(tensor.grad.isfinite().all())
                that(finite, f"{self.who}: a gradient of the student is not finite for {kind} features and logits")
            if scale == 1:
                reached = any(x.grad is not None and bool(x.grad.any()) for x in tensors(student))
                that(reached, f"{self.who}: no gradient reaches the student's features, logits or stages")
            check_gradients(self.who, {}, loss)

    def _teacher(self) -> None:
        """A giver is a constant unless its edge says ``detach=False``; a loss must work with both."""
        if self.task:
            return
        found = []
        for trained in (False, True):
            student, teacher = self.student(), mapped(self.teacher(), lambda x, on=trained: x.requires_grad_(on))  # type: ignore[misc]
            value = self.value(knowledge=(student, teacher))
            that(
                trained or not any(x.requires_grad for x in tensors(teacher)),
                f"{self.who} makes what the teacher gives require gradients: it is a constant, unless an edge says "
                "detach=False",
            )
            with refused(f"{self.who} with a teacher that requires gradients" if trained else f"{self.who}: backward"):
                value.backward()
            found.append([x.grad for x in tensors(student)])
        for constant, other in zip(*found, strict=True):
            same = constant is other is None or (None not in (constant, other) and torch.allclose(constant, other))  # type: ignore[arg-type]
            that(
                same, f"{self.who}: the student's gradient is another one where the teacher requires gradients as well"
            )
        told = [x.grad for x in tensors(teacher) if x.grad is not None]
        that(
            all(bool(x.isfinite().all()) for x in told),
            f"{self.who}: a gradient of a teacher that requires one is not finite",
        )
        if not any(bool(x.any()) for x in told):
            what = "gives a teacher that requires gradients none: an edge with detach=False would not train it"
            warnings.warn(f"{self.who} {what}", stacklevel=4)

    def _labels(self) -> None:
        one = self.value(size=self.least)
        kind = "one image" if self.least == 1 else f"{self.least} images"
        that(bool(one.isfinite()), f"{self.who}: its value is {one} for a batch of {kind}")
        with refused(f"{self.who} with a batch of {kind}"):
            one.backward()
        soft = self.value(Batch(torch.full((self.size, CLASSES), 1 / CLASSES), torch.arange(self.size)))
        that(
            soft.ndim == 0 and bool(soft.isfinite()),
            f"{self.who}: its value is {short(soft)} for soft labels (N, classes)",
        )
        loss, batch = whole_copy(self.loss), self.batch(self.size)
        some = torch.where(torch.arange(self.size) % 2 == 0, batch.labels, -1)  # type: ignore[arg-type]
        for what, teacher, given in (
            ("images without a label (-1 in batch.labels)", None if self.task else self.teacher(), Batch(some)),
            ("no labels (batch.labels is None)", None if self.task else self.teacher(), Batch(None)),
            ("no positions (batch.index is None)", None if self.task else self.teacher(), Batch(batch.labels)),
            ("no teacher (as a task loss)", None, batch),
        ):
            try:
                loss(self.student(), teacher, given)
            except (ValueError, FBTError):  # a clear refusal
                pass
            except Exception as error:
                raise AssertionError(
                    f"{self.who} raises {described(error)} for {what}: take it, or raise a ValueError that says so"
                ) from error

    def _sizes(self) -> None:
        """The same images several times: what each of them is told must not grow."""
        base = max(8, self.least)
        found = []
        for copies in (1, COPIES):
            student, teacher, batch = self.student(base), self.teacher(base), self.batch(base)
            larger = [mapped(k, lambda x, n=copies: x.repeat(n, *(1 for _ in x.shape[1:]))) for k in (student, teacher)]  # type: ignore[misc]
            several = Batch(batch.labels.repeat(copies), batch.index.repeat(copies))  # type: ignore[union-attr]
            self.value(several, size=base * copies, knowledge=(larger[0], larger[1])).backward()
            found.append(
                sum(float(x.grad.double().square().sum()) for x in tensors(student) if x.grad is not None) ** 0.5
            )
        student, images = self.student(COPIES * base), COPIES * base
        self.value(size=images, knowledge=(student, self.teacher(images))).backward()
        told = [x.grad.flatten(1).abs().sum(1) > 0 for x in tensors(student) if x.grad is not None]
        count = int(torch.stack(told).any(0).sum()) if told else 0
        that(
            count >= FEWEST * images,
            f"{self.who}: {count} images of {images} tell the student anything: it looks at a fixed number of them",
        )
        growth = found[1] / max(found[0], 1e-30)
        that(
            1 / GROWTH < growth < GROWTH,
            f"{self.who}: a batch of {COPIES} times the images makes the gradient {growth:.3g} times as large: take "
            "the mean over the batch, not a sum, and divide by its own number of images, not by a fixed one; take no "
            "norm of the whole batch, and no softmax along it (dim=0)",
        )

    def _positions(self) -> None:
        if self.task or getattr(self.loss, "stochastic", False):
            return

        def value(student: Knowledge, teacher: Knowledge) -> Tensor:
            return self.value(knowledge=(student, teacher))

        for (own, target), (other, source) in zip(*(shown.items() for shown in self.shown), strict=False):
            problem = wrong_positions(value, self.student(), self.teacher(), (target, source), (own, other))
            that(problem is None, f"{self.who} {problem}")

    def _precisions(self) -> None:
        for dtype in (torch.bfloat16, torch.float16):
            known = self.student(dtype=dtype), self.teacher(dtype=dtype)
            exact = self.value(knowledge=(mapped(known[0], Tensor.float), mapped(known[1], Tensor.float)))
            with torch.autocast("cpu", dtype):
                value = self.value(knowledge=known)
            close = 0.01 if getattr(self.loss, "autocast", False) else 0  # the same numbers give the same bits
            same = value.dtype == torch.float32 and torch.allclose(value, exact, rtol=close, atol=0)
            that(
                same,
                f"{self.who}: {value:.9g} ({value.dtype}) for {dtype} under autocast, {exact:.9g} in float32: compute "
                "inside of `with full_precision(...)`, or say `autocast = True` of a loss whose networks run in the "
                "run's precision",
            )
        double = self.value(dtype=torch.float64)
        that(double.dtype == torch.float64, f"{self.who}: its value is {double.dtype} for float64 knowledge")

    def _randomness(self) -> None:
        def evaluated(seed: int) -> float:  # dropout of the loss's own networks is off then
            return float(self.value(loss=whole_copy(self.loss).eval(), seed=seed).detach())

        first, again, other = evaluated(0), evaluated(0), evaluated(1)
        that(
            first == again,
            f"{self.who}: its value is {first:.6g}, and {again:.6g} for the same input and seed: what it draws must "
            "come from torch's own generator, which a run seeds for each step",
        )
        stochastic = getattr(self.loss, "stochastic", False) or abs(first - other) <= 1e-5 * max(abs(first), 1e-6)
        that(
            bool(stochastic),
            f"{self.who}: its value is {first:.6g}, and {other:.6g} for the same input and another seed: it is random; "
            "if that is meant, say `stochastic = True` in its class",
        )

    def _memory(self) -> None:
        """Three training steps in a row, the last of them also in a fresh copy that was given all buffers."""
        loss, counts = whole_copy(self.loss).train(), []
        for step in range(3):
            if step == 2:
                fresh = whole_copy(self.loss).train()
                put(state_of(loss), fresh)
            value = self.value(loss=loss, seed=step, knowledge=self._other_images(step))
            with refused(f"{self.who}: backward of its step {step + 1} (detach what it remembers)"):
                value.backward()
            counts.append(_whole_numbers(loss))
        resumed = self.value(loss=fresh, seed=2, knowledge=self._other_images(2))
        remembers = "a buffer, register_buffer(NAME, VALUE, persistent=False): a resumed run knows nothing else"
        that(
            torch.equal(value, resumed),
            f"{self.who}: its third step gives {value:.6g}, and {resumed:.6g} in a fresh copy that was given its "
            f"buffers: what it counts or remembers must be {remembers}",
        )
        for name in counts[0].keys() & counts[1].keys() & counts[2].keys():
            a, b, c = (count[name] for count in counts)
            that(
                not a < b < c, f"{self.who} counts its steps in the plain attribute {name!r}, which must be {remembers}"
            )

    def _direction(self) -> None:
        """A student that knows what its teacher knows is better than one that knows it of other images."""
        specs = MODELS["maps"]
        loss = self._set_up((specs, specs), (8, 8))
        if any(p.numel() > 1 and p.requires_grad for p in loss.parameters()):  # it says nothing before it is trained
            values = trained_down(
                self.value, loss, knowledge_of(specs, 0, self.size), knowledge_of(specs, 1, self.size)
            )
            drops = values[0] - values[1], values[1] - values[2]
            that(
                values[2] > min(0.0, values[0]) - BOUND or drops[1] < drops[0],
                f"{self.who}: in training its value falls without end ({values[0]:.4g}, {values[1]:.4g}, "
                f"{values[2]:.4g}): has it the wrong sign?",
            )
            return
        size = max(16, self.least)
        for worse in ("of other images", "random"):
            pairs = [better_and_worse(self.value, loss, specs, seed, size, worse) for seed in range(6)]
            wrong = all(b > w + 1e-4 * (abs(b) + abs(w)) + 1e-7 for b, w in pairs)
            what = "teacher" if not self.task else "labels"
            that(
                not wrong,
                f"{self.who}: its value is {pairs[0][0]:.6g} for a student that agrees with the {what}, and "
                f"{pairs[0][1]:.6g} for one whose knowledge is {worse}: a loss must be smaller for the better student "
                "(has it the wrong sign?)",
            )

    def _on_meta(self, loss: nn.Module) -> None:
        student, teacher = (mapped(k, lambda x: x.detach().to("meta")) for k in (self.student(), self.teacher()))
        batch = self.batch(self.size)
        loss(student, None if self.task else teacher, Batch(batch.labels.to("meta"), batch.index.to("meta")))  # type: ignore[union-attr]


def _whole_numbers(loss: nn.Module) -> dict[str, int]:
    """Plain attributes that are whole numbers, by name."""
    return {
        f"{path}.{name}" if path else name: value
        for path, module in loss.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, int) and not isinstance(value, bool)
    }
