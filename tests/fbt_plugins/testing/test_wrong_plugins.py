"""What an honest author gets wrong, each caught by its check in words that name the fault; and what passes."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fbt_plugins import ARCHITECTURES, Batch, Declaration, FromMap, Knowledge, StagedModel, StageSpec, ToMap
from fbt_plugins import full_precision as full
from fbt_plugins.authoring import ends
from fbt_plugins.testing.checks import check_architecture, check_fusion, check_loss


def says(reason: str, check: Callable[..., None], *args: Any, **options: Any) -> None:
    """The check fails for this reason, on one line."""
    with warnings.catch_warnings(), pytest.raises(AssertionError) as found:
        warnings.simplefilter("ignore")
        check(*args, **options)
    assert reason in str(found.value) and "\n" not in str(found.value), found.value


# ---- losses ---------------------------------------------------------------------------------------------------------


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


# ---- fusions --------------------------------------------------------------------------------------------------------


class Join(nn.Module):
    """Maps by a convolution and interpolation, with what is wrong as a function of the map, the join and its grids."""

    def __init__(
        self, source: StageSpec, target: StageSpec, does: Callable[[Tensor, Any], Tensor], head: bool, norm: bool
    ) -> None:
        super().__init__()
        self.target, self.does = target, does
        self.to_map, self.from_map = ToMap(source), FromMap(target, pooled=head)
        self.width = nn.Conv2d(source.channels, target.channels, 1)
        self.drop, self.norm = nn.Dropout(0.1), nn.BatchNorm2d(source.channels) if norm else None
        self.plain = [nn.Conv2d(target.channels, target.channels, 1)]

    def forward(self, x: Tensor) -> Tensor:
        x = self.width(self.does(self.to_map(x), self))
        x = F.interpolate(x, self.target.grid, mode="nearest")
        return self.from_map(x.permute(0, 2, 3, 1))


class Fusion:
    def __init__(self, does: Callable[[Tensor, Any], Tensor] = lambda x, join: x, **options: bool) -> None:
        self.does, self.raster, self.norm = does, options.get("raster", False), options.get("norm", False)

    def build(self, student_specs: Any, teacher_specs: Any, splice: Any) -> nn.ModuleDict:
        built = {}
        for junction in splice.junctions:
            source, target = ends(junction, student_specs, teacher_specs)
            if self.raster:  # what it never looked at
                source, target = (StageSpec(s.layout, s.channels, s.grid, s.prefix_tokens) for s in (source, target))
            head = junction.first > len(student_specs if junction.taker == "S" else teacher_specs)
            built[junction.name] = Join(source, target, self.does, head, self.norm)
        return nn.ModuleDict(built)


def swapped(x: Tensor, join: Any) -> Tensor:
    return x.transpose(2, 3)


def misread(x: Tensor, join: Any) -> Tensor:
    """Tokens of (h, w) unflattened to (w, h)."""
    return x.flatten(2).unflatten(2, (x.shape[3], x.shape[2]))


def normed(x: Tensor, join: Any) -> Tensor:
    return F.batch_norm(x, None, None, training=True)


def listed(x: Tensor, join: Any) -> Tensor:
    return x + join.plain[0](join.width(x)).mean((1, 2, 3), keepdim=True)


def made_in_forward(x: Tensor, join: Any) -> Tensor:
    if not hasattr(join, "gain"):
        join.gain = nn.Parameter(torch.ones(1))
    return x * join.gain


FUSIONS: dict[str, tuple[Callable[[Tensor, Any], Tensor], str]] = {
    "rolled": (lambda x, _: x.roll(1, 0), "mixes the images of a batch: in eval mode it gives something else"),
    "the mean of the batch": (lambda x, _: x - x.mean(0, keepdim=True), "mixes the images of a batch"),
    "statistics of the batch": (normed, "mixes the images of a batch"),
    "rolled in training": (
        lambda x, j: x.roll(1, 0) if j.training else x,
        "in train mode what it gives for one comes from",
    ),
    "one position": (lambda x, _: x[:, :, :1, :1].expand_as(x), "looks at 1 of the 16 positions that arrive"),
    "dropout": (
        lambda x, _: F.dropout(x, 0.1),
        "in eval mode it gives other values for the same input the second time",
    ),
    "in place": (lambda x, _: x.relu_(), "changes what arrives in place"),
    "swapped": (swapped, "takes what arrives with rows and columns swapped"),
    "misread": (misread, "takes what arrives with height and width of the grid swapped"),
    "upside down": (lambda x, _: x.flip(2), "from another place of what arrives (is it flipped or shifted?)"),
    "shifted": (lambda x, _: x.roll((x.shape[2] // 2, x.shape[3] // 2), (2, 3)), "is it flipped or shifted?"),
    "layers in a list": (listed, "none of its parameters: nothing trains or saves it; keep modules in nn.ModuleList"),
    "a parameter made in forward": (made_in_forward, "it makes tensors on the CPU, wherever it runs: use device="),
    "no gradient": (lambda x, _: x.detach(), "no gradient reaches what arrives"),
}


@pytest.mark.parametrize(("does", "reason"), FUSIONS.values(), ids=FUSIONS)
def test_a_wrong_fusion_is_caught(does: Callable[[Tensor, Any], Tensor], reason: str) -> None:
    says(reason, check_fusion, Fusion(does), splices=("S1-3+T4",))


def test_a_fusion_that_takes_all_tokens_to_come_row_by_row_is_caught() -> None:
    says("takes what arrives as if tokens came row by row", check_fusion, Fusion(raster=True), splices=("S1-3+T4",))


RIGHT: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "the nearest positions": lambda x, _: x,
    "a stride": lambda x, _: x[:, :, ::2, ::2],
    "dropout": lambda x, join: join.drop(x),
    "BatchNorm": lambda x, join: join.norm(x),
    "a mean": lambda x, _: x.mean((2, 3), keepdim=True).expand_as(x),
}


@pytest.mark.parametrize("does", RIGHT.values(), ids=RIGHT)
def test_a_right_fusion_passes(does: Callable[[Tensor, Any], Tensor]) -> None:
    check_fusion(Fusion(does, norm=does is RIGHT["BatchNorm"]), splices=("S1-3+T4", "S1-4+Thead"))


def test_a_fusion_may_refuse_what_it_cannot_join_but_not_everything() -> None:
    class MapsOnly(Fusion):
        kinds: tuple[str, ...] = ("NCHW",)

        def build(self, student_specs: Any, teacher_specs: Any, splice: Any) -> nn.ModuleDict:
            if {s.layout for s in (*student_specs, *teacher_specs)} - set(self.kinds):
                raise ValueError("maps only")
            return super().build(student_specs, teacher_specs, splice)

    with pytest.warns(UserWarning, match="MapsOnly refuses 15 of 16 pairs of models, for example .*: maps only"):
        check_fusion(MapsOnly(), splices=("S1-3+T4",))
    MapsOnly.kinds = ()
    says("MapsOnly refuses all that is tried", check_fusion, MapsOnly(), splices=("S1-3+T4",))


# ---- architectures --------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self, does: Callable[[Tensor], Tensor] = lambda x: x, rates: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 2, 2), nn.Sequential(nn.Conv2d(4, 8, 2, 2), nn.BatchNorm2d(8), Does(does))
        self.pool, self.fc = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(8, 5)
        self.rates = [rate.item() for rate in torch.linspace(0, 0.1, 4)] if rates else []

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.b(self.a(x))))


class Does(nn.Module):
    def __init__(self, does: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.does, self.layers = does, [nn.Conv2d(8, 8, 1)]

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[0](x) if self.does is listed else self.does(x)  # type: ignore[comparison-overlap]


def cut(net: nn.Module) -> StagedModel:
    return Declaration(stem="", units="a b", cuts="a b", head="pool fc").cut(net, image_size=(8, 8), name="net")


def build_rates(num_classes: int = 5) -> StagedModel:
    return cut(Net(rates=True))


@pytest.mark.parametrize(
    ("does", "reason"),
    [
        (
            lambda x: x - x.mean(0, keepdim=True),
            "net mixes the images of a batch: in eval mode its logits for an image",
        ),
        (lambda x: x * torch.ones(8, 1, 1), "Tensor on device cpu is not on the expected device meta"),
        (listed, "net: it computes with a trained tensor (8"),
    ],
    ids=["mixed", "made on the CPU", "layers in a list"],
)
def test_a_wrong_network_is_caught(does: Any, reason: str) -> None:
    says(reason, check_architecture, cut(Net(does)))


class Keeps(nn.Module):
    """A layer that leaves something in an attribute for one behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.kept = nn.Conv2d(3, 4, 2, 2), torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        self.kept = x.mean()
        return x


class Reads(nn.Module):
    def __init__(self, keeps: Keeps) -> None:
        super().__init__()
        self.conv, self.keeps = nn.Conv2d(4, 8, 2, 2), [keeps]

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.keeps[0].kept


def test_a_stage_that_looks_at_what_another_has_left_is_caught() -> None:
    net = Net()
    net.a = Keeps()  # type: ignore[assignment]
    net.b = Reads(net.a)  # type: ignore[assignment,arg-type]
    says("stage 2 gives something else for the same input once other images", check_architecture, cut(net))


def test_a_network_that_looks_at_values_when_it_is_built_is_caught() -> None:
    ARCHITECTURES.register_module(name="rates_net", module=build_rates)
    try:
        says("rates_net: built without weights, on torch's meta device", check_architecture, dict(type="rates_net"))
    finally:
        del ARCHITECTURES.module_dict["rates_net"]


def test_a_right_network_passes() -> None:
    check_architecture(cut(Net()))
