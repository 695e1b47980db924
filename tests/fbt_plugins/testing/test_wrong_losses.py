"""What an honest author of a loss gets wrong, each caught in words that name the fault; and what passes."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from caught import says
from torch import Tensor, nn

from fbt_plugins import Batch, Knowledge, ToMap
from fbt_plugins import full_precision as full
from fbt_plugins.testing.checks import check_loss


class Loss(nn.Module):
    """The mean squared difference of logits; what is wrong is told as a function of it, the student and the loss."""

    def __init__(self, does: Callable[[Tensor, Knowledge, Any], Any] = lambda value, student, loss: value) -> None:
        super().__init__()
        self.does, self.steps = does, 0
        self.generator = torch.Generator()
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Any:
        if teacher is None:
            raise ValueError("Loss compares two models")
        with full(student.logits, teacher.logits) as (z_s, z_t):
            return self.does(F.mse_loss(z_s, z_t), student, self)


def counted(value: Tensor, student: Knowledge, loss: Any) -> Tensor:
    loss.steps += 1
    return value * min(1, loss.steps / 100)


def remembered(value: Tensor, student: Knowledge, loss: Any) -> Tensor:
    loss.mean = 0.9 * getattr(loss, "mean", 0.0) + 0.1 * student.logits.detach().float().mean()
    return value * (1 + loss.mean**2)


def counted_for_later(value: Tensor, student: Knowledge, loss: Any) -> Tensor:
    loss.steps += 1
    return value if loss.steps < 1000 else 2 * value


def counted_in_a_buffer(value: Tensor, student: Knowledge, loss: Any) -> Tensor:
    loss.seen += 1
    return value * loss.seen.clamp(max=100) / 100


def made_late(value: Tensor, student: Knowledge, loss: Any) -> Tensor:
    if not hasattr(loss, "scale"):
        loss.scale = nn.Parameter(torch.ones(()))
    return value * loss.scale


def remembered_with_its_graph(value: Tensor, student: Knowledge, loss: Any) -> Tensor:
    loss.last, last = value, getattr(loss, "last", 0.0)
    return value + 0.1 * last


class Listed(Loss):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(5, 5)]

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Any:
        value = super().forward(student, teacher, batch)
        with full(student.logits) as (z,):
            return value + self.layers[0].to(z.dtype)(z).square().mean()


class Elsewhere(Loss):
    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.ones(5)

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Any:
        value = super().forward(student, teacher, batch)
        with full(student.logits) as (z,):
            return value + (z * self.weights).square().mean()


class Teaching(Loss):
    """Sends a gradient to a teacher that is a constant."""

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Any:
        if teacher is not None and teacher.logits.is_leaf:
            teacher.logits.requires_grad_()
        return super().forward(student, teacher, batch)


class Constant(Loss):
    """Does not raise, and is right, but an edge with detach=False would not train its giver."""

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Any:
        return super().forward(student, teacher and teacher.detach(), batch)


class Projected(nn.Module):
    """Right: with BatchNorm, which one image is too few for."""

    needs = {"min_batch": 2}  # noqa: RUF012

    def __init__(self, sign: float = 1.0) -> None:
        super().__init__()
        self.sign = sign

    def setup(self, student_specs: Any, teacher_specs: Any, data_info: dict[str, int]) -> None:
        wide, width = data_info["student_features"], data_info["teacher_features"]
        self.project = nn.Sequential(nn.Linear(wide, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, width))

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Any:
        if teacher is None:
            raise ValueError("Projected compares two models")
        with full(student.features, teacher.features) as (f_s, f_t):
            return self.sign * F.mse_loss(self.project(f_s), f_t)


class Valued(Projected):
    """Looks at values where it is set up."""

    def setup(self, student_specs: Any, teacher_specs: Any, data_info: dict[str, int]) -> None:
        super().setup(student_specs, teacher_specs, data_info)
        self.first = next(self.project.parameters())[0, 0].item()


LOSSES: dict[str, tuple[nn.Module, str]] = {
    "a sum": (
        Loss(lambda v, s, _: v * len(s.logits)),
        "makes the gradient 4 times as large: take the mean over the batch",
    ),
    "a fixed number of images": (
        Loss(lambda v, s, _: v * len(s.logits) / 64),
        "not a sum, and divide by its own number",
    ),
    "a fixed size": (
        Loss(lambda v, s, _: v + s.logits.view(4, 5).mean() * 0),
        "Loss with a batch of 1 in torch.float32, where one of 4 works: RuntimeError: shape '[4, 5]' is invalid",
    ),
    "the first images": (
        Loss(lambda v, s, _: s.logits[:4].float().square().mean()),
        "4 images of 32 tell the student anything",
    ),
    "one norm of all": (Loss(lambda v, s, _: (v * len(s.logits) + 1e-3).sqrt()), "makes the gradient 2 times as large"),
    "a softmax along the batch": (
        Loss(
            lambda v, s, _: F.cross_entropy(s.logits.float().T, s.logits.detach().float().T.softmax(1)) / len(s.logits)
        ),
        "no softmax along it (dim=0)",
    ),
    "a mean that is remembered": (Loss(remembered), "in a fresh copy that was given its buffers"),
    "the wrong sign": (Loss(lambda v, s, _: -v), "must be smaller for the better student (has it the wrong sign?)"),
    "the wrong sign behind a projector": (Projected(-1.0), "in training its value falls without end"),
    "random": (Loss(lambda v, s, _: v * torch.rand(())), "it is random; if that is meant, say `stochastic = True`"),
    "random dropout": (Loss(lambda v, s, _: v + F.dropout(s.logits.float()).square().mean()), "it is random"),
    "random, of its own": (
        Loss(lambda v, s, _: v * random.SystemRandom().random()),
        "for the same input and seed: what it draws must come from torch's own generator",
    ),
    "counting": (
        Loss(counted),
        "in a fresh copy that was given its buffers: what it counts or remembers must be a buffer",
    ),
    "counting for later": (
        Loss(counted_for_later),
        "counts its steps in the plain attribute 'steps', which must be a buffer",
    ),
    "a parameter made in the first step": (
        Loss(made_late),
        "it makes its parameter ['scale'] when it runs; no optimizer",
    ),
    "a graph that is kept": (Loss(remembered_with_its_graph), "backward of its step 2 (detach what it remembers): "),
    "layers in a list": (Listed(), "with a trained tensor (5, 5) that is none of its parameters"),
    "a tensor that stays behind": (
        Elsewhere(),
        "tensors of two devices (in mul): weights is a plain attribute: register",
    ),
    "a gradient to the teacher": (Teaching(), "makes what the teacher gives require gradients: it is a constant"),
    "gradients switched off": (
        Loss(lambda v, s, _: (torch.set_grad_enabled(False), v)[1]),
        "it left torch's gradients switched off",
    ),
    "an exit": (Loss(lambda v, s, _: exit(0)), "SystemExit: 0"),
    "values in setup": (Valued(), "Tensor.item() cannot be called on meta tensors"),
}


@pytest.mark.parametrize(("loss", "reason"), LOSSES.values(), ids=LOSSES)
def test_a_wrong_loss_is_caught(loss: nn.Module, reason: str) -> None:
    says(reason, check_loss, loss)


@pytest.mark.parametrize("loss", [Loss(counted_in_a_buffer), Projected(), Loss()], ids=["counts", "BatchNorm", "plain"])
def test_a_right_loss_passes(loss: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_loss(loss)


def test_a_loss_may_be_random_if_it_says_so() -> None:
    loss: Any = Loss(lambda v, s, _: v * (1 + 0.1 * torch.rand(())))
    loss.stochastic = True
    check_loss(loss)


def test_a_loss_that_detaches_its_teacher_is_warned() -> None:
    with pytest.warns(UserWarning, match="gives a teacher that requires gradients none: an edge with detach=False"):
        check_loss(Constant())


# ---- architectures --------------------------------------------------------------------------------------------------


class Staged(nn.Module):
    """The difference of two maps of stage 3; what is wrong is told as a function of them."""

    needs = {"stages": (3,)}  # noqa: RUF012

    def __init__(self, does: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = lambda x, y: (x, y)) -> None:
        super().__init__()
        self.does = does

    def setup(self, student_specs: Any, teacher_specs: Any, data_info: dict[str, int]) -> None:
        student, teacher = student_specs[2], teacher_specs[2]
        self.of_student, self.of_teacher = ToMap(student), ToMap(teacher)
        self.project = nn.Conv2d(student.channels, teacher.channels, 1)

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Any:
        if teacher is None:
            raise ValueError("Staged compares two models")
        with full(student.stages[3], teacher.stages[3]) as (x, y):
            x, y = self.project(self.of_student(x)), self.of_teacher(y)
            return F.mse_loss(*self.does(F.interpolate(x, y.shape[2:], mode="nearest"), y))


@pytest.mark.parametrize(
    ("does", "reason"),
    [
        (lambda x, y: (x, y.transpose(2, 3)), "Staged takes the teacher's stage 3 with rows and columns swapped"),
        (lambda x, y: (x, y.flip(3)), "from another place of the teacher's stage 3 (is it flipped or shifted?)"),
        (lambda x, y: (x[..., 0, 0], y[..., 0, 0]), "Staged teaches 1 of the 16 positions of the student's stage 3"),
    ],
    ids=["swapped", "flipped", "one position"],
)
def test_positions_learn_from_their_own(does: Any, reason: str) -> None:
    says(reason, check_loss, Staged(does))


@pytest.mark.parametrize(
    "does",
    [lambda x, y: (x, y), lambda x, y: (x.mean((2, 3)), y.mean((2, 3))), lambda x, y: (x.amax(1), y.amax(1))],
    ids=["each", "mean", "strongest channel"],
)
def test_stages_may_be_compared_position_by_position_or_whole(does: Any) -> None:
    check_loss(Staged(does))
