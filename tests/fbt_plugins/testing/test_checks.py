"""The checks for authors pass what is right, and name what is wrong in one line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fbt_plugins import Batch, Declaration, Knowledge, StagedModel, full_precision
from fbt_plugins.distill.fusion import ends
from fbt_plugins.testing.checks import check_architecture, check_fusion, check_loss, isolated_plugins


def test_an_isolated_manager_leaves_the_process_alone(plugins: Any) -> None:
    before = [dict(r.module_dict) for r in plugins.registries]
    isolated = isolated_plugins()
    isolated.load_module("fbt_losses")
    assert "KDLoss" in isolated.registries.losses and not isolated.registries.fusions.module_dict
    assert before == [dict(r.module_dict) for r in plugins.registries]


def test_pytest_does_not_wait_for_torch() -> None:
    code = "import sys, fbt_plugins.testing.pytest_plugin; assert not {'torch', 'mmengine'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- architectures --------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 2, 2), nn.Sequential(nn.Conv2d(4, 8, 2, 2), nn.BatchNorm2d(8))
        self.pool, self.fc = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(8, 5)
        self.shift = torch.zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.b(self.a(x))))


class Pooled(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class Float(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


class Shrinking(nn.Sequential):
    """Forgets a row of its map in train mode."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, :, self.training * 2 :])


def cut(net: nn.Module, **about: Any) -> StagedModel:
    declaration = Declaration(stem="", units="a b", cuts="a b", head="pool fc")
    return declaration.cut(net, **({"image_size": (8, 8), "name": "net"} | about))


def with_part(name: str, part: nn.Module) -> StagedModel:
    net = Net()
    setattr(net, name, part)
    return cut(net)


ARCHITECTURES: dict[str, tuple[Callable[[], Any], str]] = {
    "a network": (Net, "Net is no StagedModel"),
    "one stage": (
        lambda: StagedModel(Net(), [Net().a], Net().fc, name="net"),
        "net has 1 stage: a splice needs 2",
    ),
    "another computation": (lambda: cut(Pooled()), "net at 8x8 pixels: net: logits in eval mode differ by up to"),
    "a size it cannot take": (lambda: cut(Net(), image_size=(1, 1)), "net at 1x1 pixels"),
    "shapes of train mode": (
        lambda: with_part("b", Shrinking(nn.Conv2d(4, 8, 2, 2))),
        "in train mode stage 2 gives (4, 8, 1, 2), and specs say (4, 8, 2, 2)",
    ),
    "float32 only": (lambda: with_part("a", Float(3, 4, 2, 2)), "a copy of net: RuntimeError"),
}


@pytest.mark.parametrize(("make", "reason"), ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_a_wrong_architecture_is_told_what_is_wrong(make: Callable[[], Any], reason: str) -> None:
    fails(reason, check_architecture, make())


def test_the_right_one_passes() -> None:
    check_architecture(cut(Net()))


# ---- fusions --------------------------------------------------------------------------------------------------------


class Tokens(nn.Module):
    """Joins anything to tokens, well or not so well."""

    def __init__(self, source: Any, target: Any, fault: str) -> None:
        super().__init__()
        self.source, self.target, self.fault = source, target, fault
        self.width = nn.Linear(source.channels, target.channels)
        self.spare = nn.Linear(1, 1) if fault == "spare" else None

    def forward(self, x: Tensor) -> Tensor:
        count = self.target.sizes(1)[1] - (self.fault == "short")
        x = self.width(x)
        if self.fault == "infinite":
            x = x / 0
        if self.fault == "constant":
            x = x.detach()
        if self.fault == "same prefix" and self.target.prefix_tokens:
            x = nn.functional.interpolate(x.transpose(1, 2), count - 2, mode="linear").transpose(1, 2)
            return torch.cat([torch.ones_like(x[:, :2]), x], 1)
        return nn.functional.interpolate(x.transpose(1, 2), count, mode="linear").transpose(1, 2)


class TokenFusion:
    def __init__(self, fault: str = "") -> None:
        self.fault = fault

    def build(self, student_specs: Any, teacher_specs: Any, splice: Any) -> Any:
        if self.fault == "none":
            return None
        if self.fault == "refuses" or not all(spec.raster for spec in (*student_specs, *teacher_specs)):
            raise ValueError("no")
        all_ends = {j.name: ends(j, student_specs, teacher_specs) for j in splice.junctions}
        return nn.ModuleDict({name: Tokens(*pair, self.fault) for name, pair in all_ends.items()})


def test_a_strategy_for_tokens_passes_with_tokens_and_fails_with_maps() -> None:
    check_fusion(TokenFusion(), layouts=("NLC",))
    fails("TokenFusion (S1-3+T4, student of maps, teacher of maps) built a junction S3_T4", check_fusion, TokenFusion())


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("none", "built NoneType for the splice S1-3+T4, not a torch.nn.ModuleDict of S3_T4"),
        ("refuses", "TokenFusion refuses all that is tried: "),
        ("short", "gives (2, 23, 20) for a batch of 2; the next stage takes (2, 24, 20)"),
        ("spare", "junction S3_T4 from NLC 20 x 4x6 to NLC 20 x 4x6: no gradient reaches spare.weight"),
        ("infinite", "gives values that are not finite"),
        ("constant", "no gradient leads back from what it gives"),
        ("same prefix", "the prefix tokens that it gives are the same for all images; a head may look at these alone"),
    ],
)
def test_a_wrong_strategy_is_told_what_is_wrong(fault: str, reason: str) -> None:
    fails(reason, check_fusion, TokenFusion(fault), layouts=("NLC",))


def test_what_is_no_strategy_is_told_so() -> None:
    fails("has no build(student_specs, teacher_specs, splice)", check_fusion, 5)
    fails("layouts=('CHW',): give some of NCHW, NHWC, NLC", check_fusion, TokenFusion(), layouts=("CHW",))


# ---- losses ---------------------------------------------------------------------------------------------------------


class Loss(nn.Module):
    """A loss that is written as one expression."""

    def __init__(self, does: Callable[[Knowledge, Knowledge, Batch], Any]) -> None:
        super().__init__()
        self.does = does

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Any:
        if teacher is None:
            raise ValueError("a teacher is needed")
        return self.does(student, teacher, batch)


def right(student: Knowledge, teacher: Knowledge, batch: Batch) -> Tensor:
    with full_precision(student.logits, teacher.logits) as (z_s, z_t):
        return (z_s - z_t).square().mean()


def first_image(student: Knowledge, teacher: Knowledge, batch: Batch) -> Tensor:
    with full_precision(student.logits) as (logits,):
        return logits[0].sum()


class Banked(Loss):
    """With a bank, a projector and stages."""

    needs = {"stages": (2, 4)}  # noqa: RUF012

    def setup(self, student_specs: Any, teacher_specs: Any, data_info: dict[str, int]) -> None:
        self.register_buffer("bank", torch.zeros(data_info["num_samples"], data_info["num_classes"]))
        self.project = nn.Conv2d(student_specs[1].channels, teacher_specs[3].channels, 1)

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Any:
        value = super().forward(student, teacher, batch)
        with full_precision(student.stages[2]) as (x,):
            value = value + self.project(x).square().mean()
        if batch.index is not None:
            self.bank[batch.index] = teacher.logits.to(self.bank.dtype)  # type: ignore[index, operator, union-attr]
        return value


class Spare(Loss):
    def __init__(self, does: Callable) -> None:
        super().__init__(does)
        self.spare = nn.Parameter(torch.ones(1))


class Gained(Spare):
    """Its parameter's gradient is 0 / 0 where all logits are 0."""

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Any:
        with full_precision(student.logits.detach()) as (x,):
            return super().forward(student, teacher, batch) + (self.spare * x.square().sum()).sqrt().sum()


class Misspelt(Loss):
    needs = {"same_widths": True}  # noqa: RUF012


class Curious(Loss):
    needs = {"student_extra": ("class_logits", "colour")}  # noqa: RUF012


class Unreadable(Loss):
    needs = {"student_extra": "class_logits"}  # noqa: RUF012


def test_a_right_loss_passes() -> None:
    check_loss(Loss(right))
    check_loss(Banked(right))


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (nn.Linear, "type is no torch.nn.Module"),
        (Loss(lambda s, t, b: None), "Loss returned NoneType, not a scalar tensor"),
        (Loss(lambda s, t, b: (s.logits - t.logits).mean(1)), "Loss returned a tensor of shape (4,), not a scalar"),
        (Loss(lambda s, t, b: (s.logits.detach() - t.logits).mean()), "Loss returned a scalar without gradient"),
        (Loss(lambda s, t, b: right(s, t, b).double()), "its value is torch.float64 for float32 knowledge"),
        (Loss(lambda s, t, b: right(s, t, b) / s.logits.square().sum()), "its value is nan for all-zero features"),
        (
            Loss(lambda s, t, b: (s.logits.square().sum() + 1e-30 * 0).sqrt()),
            "gradient of the student is not finite for",
        ),
        (Loss(lambda s, t, b: t.logits.relu_().mean() + right(s, t, b)), "changes what it is given in place"),
        (Loss(lambda s, t, b: (s.logits @ t.logits.T).mean()), "compute inside of `with full_precision(...)`"),
        (Loss(lambda s, t, b: right(s, t, b).float()), "its value is torch.float32 for float64 knowledge"),
        (Loss(first_image), "when the same images come in another order"),
        (Loss(lambda s, t, b: right(s, t, b) + b.labels.sum() * 0), "Loss raises AttributeError: 'NoneType'"),
        (
            Loss(lambda s, t, b: (s.features - t.features).mean()),
            "Loss with a batch of 4 in torch.float32: RuntimeError",
        ),
        (Spare(right), "Spare: no gradient reaches spare"),
        (Gained(right), "Gained: the gradient of spare is not finite"),
        (Misspelt(right), "Misspelt: loss 'Misspelt' needs 'same_widths'; did you mean 'same_width'?"),
        (Curious(right), "Curious needs 'colour' of the student, which gives 'class_logits', 'distillation_logits'"),
        (Unreadable(right), "needs student_extra=str 'class_logits', not names such as ('class_logits',)"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_wrong_loss_is_told_what_is_wrong(loss: Any, reason: str) -> None:
    fails(reason, check_loss, loss)


def fails(reason: str, check: Callable, *args: Any, **options: Any) -> None:
    """The check fails for this reason, on one line."""
    with pytest.raises(AssertionError) as found:
        check(*args, **options)
    assert reason in str(found.value) and "\n" not in str(found.value), found.value
