"""What a plugin's parts do wrong when they are built or run: one line with plugin, distribution, version and remedy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import pytest
import torch
from conftest import CONVNEXT, RESMLP, SWIN
from runs import Build, builder, run
from torch import nn

from fbt_plugins import ARCHITECTURES, Batch, ConfigError, FBTError, Knowledge, PluginError, StagedModel
from fbt_plugins.distill.distiller import Distiller
from fbt_plugins.engine.check import check_config
from fbt_plugins.registry.loading import Plugins
from fbt_plugins.registry.registries import PluginInfo

WHOSE = "of plugin 'acme' (acme-parts 0.3)"
REMEDY = "; upgrade it, or remove it: pip uninstall acme-parts"


def flattened(images: torch.Tensor) -> torch.Tensor:
    return images.flatten(1)[:, :10]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 2, 2), nn.Conv2d(4, 8, 2, 2)


def tensor_head(num_classes: int = 10) -> StagedModel:
    net = Net()
    return StagedModel(net, [net.first, net.second], nn.Flatten(), image_size=(32, 32))


def bare_net(num_classes: int = 10) -> nn.Module:
    return nn.Linear(3, num_classes)


def broken_builder(num_classes: int = 10) -> StagedModel:
    return {}["depth"]


def exiting_builder(num_classes: int = 10) -> StagedModel:
    sys.exit(0)


def double_builder(num_classes: int = 10) -> StagedModel:
    torch.set_default_dtype(torch.float64)
    return ARCHITECTURES.build(RESMLP)


class Junctions:
    """A fusion strategy that builds what it is told to."""

    def __init__(self, junctions: Any) -> None:
        self.junctions = junctions

    def build(self, student_specs: Any, teacher_specs: Any, splice: Any) -> Any:
        return self.junctions() if isinstance(self.junctions, FunctionType) else self.junctions


class Loss(nn.Module):
    """A loss that does what it is told to with the student's logits."""

    def __init__(self, does: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.does = does

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Any:
        return self.does(student.logits)


class Odd(Loss):
    needs = ("stages",)


PARTS = {
    "architectures": {f.__name__: f for f in (bare_net, broken_builder, tensor_head, exiting_builder, double_builder)},
    "fusions": dict(Junctions=Junctions, NoStrategy=dict),
    "losses": dict(Loss=Loss, Odd=Odd, NoModule=dict),
}


@pytest.fixture(autouse=True)
def acme(plugins: Plugins) -> Iterator[None]:
    """A plugin whose parts are all wrong, in the process's registries."""
    owner = PluginInfo("acme", "acme-parts", "0.3", "acme_parts")
    for kind, parts in PARTS.items():
        registry = getattr(plugins.registries, kind)
        for name, part in parts.items():
            registry.register_module(name=name, module=part)
            registry.owners[name] = owner
    yield
    for kind, parts in PARTS.items():
        registry = getattr(plugins.registries, kind)
        for name in parts:
            del registry.module_dict[name], registry.owners[name]


BUILT = {
    "no StagedModel": (
        dict(student=dict(type="bare_net")),
        "architecture 'bare_net' * made Linear, which has no 'stages': it must be a fbt_plugins.StagedModel",
    ),
    "a builder that ends the program": (
        dict(student=dict(type="exiting_builder")),
        "architecture 'exiting_builder' * raised SystemExit: 0",
    ),
    "a builder that changes torch": (
        dict(student=dict(type="double_builder")),
        "architecture 'double_builder' * made torch.float64 torch's default dtype, for the whole program",
    ),
    "a builder that raises": (
        dict(student=dict(type="broken_builder")),
        "architecture 'broken_builder' * raised KeyError: 'depth'",
    ),
    "a head that gives a tensor": (
        dict(student=dict(type="tensor_head")),
        "architecture 'tensor_head' * has a head that gives a Tensor, not Knowledge(features, logits)",
    ),
    "no strategy": (dict(fusion=dict(type="NoStrategy")), "fusion 'NoStrategy' * made dict {}, which has no 'build'"),
    "no ModuleDict": (
        dict(fusion=dict(type="Junctions", splice="S1-3+T4", junctions=None)),
        "fusion 'Junctions' * built NoneType for the splice S1-3+T4, not a torch.nn.ModuleDict of S3_T4",
    ),
    "other junctions": (
        dict(fusion=dict(type="Junctions", splice="S1-3+T4", junctions=nn.ModuleDict({"T3_S4": nn.Identity()}))),
        "fusion 'Junctions' * built T3_S4 for the splice S1-3+T4, which has S3_T4",
    ),
    "another shape": (
        dict(fusion=dict(type="Junctions", splice="S1-3+T4", junctions=nn.ModuleDict({"S3_T4": nn.Identity()}))),
        "built a junction S3_T4 from NLC 16 x 8x8 to NCHW 24 x 2x2 that gives (2, 64, 16) for a batch of 2; the next "
        "stage takes (2, 24, 2, 2)",
    ),
    "a junction that raises": (
        dict(fusion=dict(type="Junctions", splice="S1-3+T4", junctions=nn.ModuleDict({"S3_T4": nn.Linear(7, 7)}))),
        "fusion 'Junctions' * built a junction S3_T4 from NLC 16 x 8x8 to NCHW 24 x 2x2 that raises RuntimeError",
    ),
    "a strategy that raises": (
        dict(fusion=dict(type="Junctions", splice="S1-3+T4", junctions=lambda: 1 // 0)),
        "fusion 'Junctions' * raised ZeroDivisionError",
    ),
    "no loss": (dict(logit_loss=dict(type="NoModule")), "loss 'NoModule' * made dict {}, which has no 'forward'"),
    "needs of another form": (
        dict(logit_loss=dict(type="Odd", does=None)),
        "loss 'Odd' * has needs of tuple ('stages',), not a dict such as {'same_width': True}",
    ),
}


@pytest.mark.parametrize(("options", "reason"), BUILT.values(), ids=BUILT)
def test_what_is_no_part_is_refused_when_it_is_built(options: dict, reason: str) -> None:
    defaults = dict(student=RESMLP, teacher=CONVNEXT, logit_loss=dict(type="KDLoss"), image_size=(32, 32))
    edges = ["teacher_to_fusion", "fusion_to_student"] if "fusion" in options else ["teacher_to_student"]
    with pytest.raises(FBTError) as refused:
        Distiller(**(defaults | dict(edges=edges) | options))
    (line,) = str(refused.value).splitlines()
    assert reason.replace("*", WHOSE) in line and line.endswith(REMEDY)


class Mute(Exception):
    def __str__(self) -> str:
        return str(1 / 0)


def mute() -> None:
    raise Mute


RAN = {
    "nothing": (lambda x: None, "returned NoneType, not a scalar tensor"),
    "a number": (lambda x: 0.5, "returned float 0.5, not a scalar tensor"),
    "one value per image": (lambda x: x.mean(1), "returned a tensor of shape (8,), not a scalar"),
    "a constant": (lambda x: x.detach().sum(), "returned a scalar without gradient"),
    "a count": (lambda x: x.argmax(), "returned a scalar of torch.int64"),
    "a value elsewhere": (lambda x: x.sum().to("meta"), "returned a scalar on meta, and was given what is on cpu"),
    "gradients off": (
        lambda x: (torch.set_grad_enabled(False), x.sum())[1],
        "left torch's gradients switched off (use `with torch.no_grad():`), for the whole program; that was undone",
    ),
    "an exit": (lambda x: sys.exit(0), "raised SystemExit: 0"),
    "an exception without text": (lambda x: mute(), "raised Mute: (its own text cannot be made: ZeroDivisionError)"),
    "an exception": (lambda x: x @ x, "raised RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
}


@pytest.fixture
def config(tmp_path: Any) -> Build:
    return builder(tmp_path)


@pytest.mark.parametrize(("does", "reason"), RAN.values(), ids=RAN)
def test_a_loss_that_is_none_ends_the_first_step(
    config: Build, monkeypatch: pytest.MonkeyPatch, does: Callable, reason: str
) -> None:
    monkeypatch.setattr(Loss.__init__, "__defaults__", (does,))
    options = {"model.fusion": None, "model.edges": ["teacher_to_student"], "model.logit_loss": dict(type="Loss")}
    wrong = config(**options)
    check_config(wrong)
    with pytest.raises(FBTError) as ended:
        run(wrong)
    (line,) = str(ended.value).splitlines()
    assert f"loss 'Loss' {WHOSE} {reason}" in line and REMEDY in line and torch.is_grad_enabled()


@pytest.mark.parametrize("does", [does for does, _ in RAN.values()][:2])
def test_a_weight_does_not_hide_it(does: Callable) -> None:
    options = dict(edges=["teacher_to_student"], logit_loss=dict(type="Loss", does=does, weight=0.5))
    model = Distiller(RESMLP, CONVNEXT, image_size=(32, 32), **options)
    with pytest.raises(FBTError, match="not a scalar tensor"):
        model.parse_losses(model.losses(torch.rand(2, 3, 32, 32), Batch(torch.tensor([0, 1]))))


def test_the_parts_of_a_distiller_are_checked_in_its_first_step_only() -> None:
    model = Distiller(RESMLP, image_size=(32, 32), task_loss=dict(type="CrossEntropyLoss"))
    model.parse_losses(model.losses(torch.rand(2, 3, 32, 32), Batch(torch.tensor([0, 1]))))
    model.parse_losses({"task": torch.tensor(1.0)})


def test_a_parameter_of_a_loss_that_gets_no_gradient_ends_the_first_step() -> None:
    model = Distiller(RESMLP, image_size=(32, 32), task_loss=dict(type="CrossEntropyLoss"))
    model.edges["task"].losses["task"].register_parameter("spare", nn.Parameter(torch.ones(1)))  # type: ignore[union-attr]
    with pytest.raises(
        FBTError, match=r"loss 'CrossEntropyLoss' of .* has a parameter 'spare' that no loss's gradient"
    ):
        model.parse_losses(model.losses(torch.rand(2, 3, 32, 32), Batch(torch.tensor([0, 1]))))


def test_a_value_error_of_a_loss_is_for_the_user() -> None:
    model = Distiller(RESMLP, image_size=(32, 32), task_loss=dict(type="CrossEntropyLoss"))
    with pytest.raises(ConfigError) as raised:
        model.losses(torch.rand(2, 3, 32, 32), Batch(None))
    assert str(raised.value) == "CrossEntropyLoss (task): CrossEntropyLoss needs labels, and this batch has none"


def test_what_a_part_raises_in_a_step_comes_in_its_plugins_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever part it is: a loss, a junction, a borrowed stage, a model. The cause is kept."""

    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    model = Distiller(
        RESMLP,
        SWIN,
        dict(type="L2GFusion"),
        ["teacher_to_fusion"],
        logit_loss=dict(type="OFALoss"),
        task_loss=dict(type="CrossEntropyLoss"),
        image_size=(32, 32),
    )
    images, labels = torch.rand(2, 3, 32, 32), torch.tensor([0, 1])
    with pytest.raises(PluginError, match=r"loss 'CrossEntropyLoss' of plugin 'losses' .* raised IndexError"):
        model.losses(images, Batch(torch.tensor([0, 99])))
    parts = {
        "fusion 'L2GFusion' of plugin 'fusions'": model.fusions["fusion"].junctions["S3_T4"],
        "architecture 'timm' of plugin 'architectures'": model.teacher.stages[3],  # type: ignore[union-attr]
        "loss 'OFALoss' of plugin 'losses'": model.edges["teacher_to_fusion"].losses["logit"],
    }
    for whose, part in parts.items():
        with monkeypatch.context() as patch, pytest.raises(PluginError, match=f"{whose} .* raised .*broken") as raised:
            patch.setattr(part, "forward", broken)
            model.losses(images, Batch(labels))
        assert isinstance(raised.value.__cause__, RuntimeError)
