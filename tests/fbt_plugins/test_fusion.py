"""Splices on real pairs: they build, nothing runs twice, and gradients go where they belong."""

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import CNN, CONVNEXT, DEIT, RESMLP, SWIN, VIT
from fbt_architectures.traced_cut import cut_by_trace

from fbt_plugins.distiller import Distiller
from fbt_plugins.errors import ConfigError
from fbt_plugins.knowledge import Batch
from fbt_plugins.splice import enumerate_splices

PAIRS = [(RESMLP, CONVNEXT), (CNN, SWIN), (VIT, CNN), (SWIN, DEIT), (DEIT, RESMLP), (CONVNEXT, VIT)]
SPLICES = [str(s) for switches in (1, 2) for s in enumerate_splices(switches=switches)]
Make = Callable[..., Distiller]


@pytest.mark.parametrize(("student", "teacher"), PAIRS, ids=lambda c: c["name"])
@pytest.mark.parametrize("splice", ["S1-3+T4", "T1-3+S4", "S1+T2+S3-4", "S1-4+Thead", "T1-4+Shead"])
def test_every_cut_gives_finite_losses_and_a_gradient_to_all_that_is_trained(
    make: Make, images: torch.Tensor, labels: torch.Tensor, student: dict, teacher: dict, splice: str
) -> None:
    model = make(student, teacher, splice).train()
    losses = model.losses(images, Batch(labels))
    assert len(losses) == 7 and all(torch.isfinite(v) for v in losses.values())
    sum(losses.values()).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    assert all(p.grad is None for p in model.teacher.parameters())


@pytest.mark.parametrize("splice", SPLICES)
def test_each_stage_runs_once_in_its_own_model_and_once_in_the_spliced_tail(
    make: Make, images: torch.Tensor, labels: torch.Tensor, splice: str
) -> None:
    model = make(CNN, RESMLP, splice).train()
    ran: Counter[str] = Counter()
    for letter, owner in (("S", model.student), ("T", model.teacher)):
        for number, part in enumerate([*owner.stages, owner.head], 1):
            part.register_forward_hook(lambda *_, key=f"{letter}{number}": ran.update([key]))
    model.losses(images, Batch(labels))
    expected = Counter({f"{letter}{n}": 1 for letter in "ST" for n in range(1, 6)})
    pieces = model.fusions["fusion"].splice.pieces
    expected.update(f"{p.owner}{n}" for p in pieces[1:] for n in p.stages)
    expected.update([f"{pieces[-1].owner}5"])
    assert ran == expected


def test_stages_that_nothing_needs_are_not_run(make: Make, images: torch.Tensor, labels: torch.Tensor) -> None:
    model = make(CNN, RESMLP, "T1-2+S3-4", edges=["fusion_to_student"]).train()
    ran: list[int] = []
    for number, stage in enumerate(model.teacher.stages, 1):
        stage.register_forward_hook(lambda *_, n=number: ran.append(n))
    model.losses(images, Batch(labels))
    assert ran == [1, 2]


def test_the_fusion_model_is_the_composition_of_its_pieces(make: Make, images: torch.Tensor) -> None:
    model = make(RESMLP, CONVNEXT, "S1-3+T4").eval()
    x = model.prepare(images, "student")
    for stage in model.student.stages[:3]:
        x = stage(x)
    x = model.fusions["fusion"].junctions["S3_T4"](x)
    expected = model.teacher.head(model.teacher.stages[3](x)).logits
    assert torch.equal(model.predict(images, ["fusion"])["fusion"], expected)


def test_gradient_reaches_student_stages_through_frozen_teacher_stages(
    make: Make, images: torch.Tensor, labels: torch.Tensor
) -> None:
    model = make(RESMLP, CONVNEXT, "S1-3+T4", edges=["teacher_to_fusion"], feature_loss=None).train()
    model.losses(images, Batch(labels))["teacher_to_fusion/logit"].backward()
    for stage in model.student.stages[:3]:
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in stage.parameters())
    assert all(p.grad is None for p in model.student.stages[3].parameters())
    assert all(p.grad is None for p in model.teacher.parameters())


@pytest.mark.parametrize("splice", ["S1-3+T4", "T1-3+S4", "S1+T2+S3-4"])
def test_training_changes_neither_weights_nor_buffers_of_the_teacher(
    make: Make, images: torch.Tensor, labels: torch.Tensor, splice: str
) -> None:
    model = make(RESMLP, CNN, splice).train()
    before = {k: v.clone() for k, v in model.teacher.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        model.train()
        optimizer.zero_grad()
        sum(model.losses(images, Batch(labels)).values()).backward()
        optimizer.step()
    assert all(torch.equal(before[k], v) for k, v in model.teacher.state_dict().items())
    assert not any(m.training for m in model.teacher.modules())


def test_a_second_run_of_student_stages_keeps_batchnorm_statistics_of_its_own(
    make: Make, images: torch.Tensor, labels: torch.Tensor
) -> None:
    spliced, alone = (
        make(CNN, RESMLP, "T1-3+S4").train(),
        make(CNN, None, None, (), feature_loss=None, logit_loss=None).train(),
    )
    alone.student.load_state_dict(spliced.student.state_dict())
    spliced.losses(images, Batch(labels))
    alone.losses(images, Batch(labels))
    for (name, a), (_, b) in zip(spliced.student.named_buffers(), alone.student.named_buffers(), strict=True):
        assert torch.equal(a, b), name
    own = spliced.fusions["fusion"].statistics["4"].named()
    student = dict(spliced.student.stages[3].named_buffers())
    moved = [k for k in own if "running" in k]
    assert moved and all(not torch.equal(own[k], student[k]) for k in moved)
    assert all(own[k] == 1 for k in own if "num_batches" in k)


class LastNorm(torch.nn.Module):
    """A network whose head has a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        convolutions = [torch.nn.Conv2d(3 if i == 0 else 8, 8, 3, 2, 1) for i in range(4)]
        self.stages, self.norm, self.fc = (
            torch.nn.ModuleList(convolutions),
            torch.nn.BatchNorm1d(8),
            torch.nn.Linear(8, 10),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in self.stages:
            x = stage(x)
        return self.fc(self.norm(x.mean((2, 3))))


def test_a_second_run_of_the_students_head_keeps_statistics_of_its_own(
    make: Make, images: torch.Tensor, labels: torch.Tensor, plugins: Any
) -> None:
    registry = plugins.registries.architectures
    registry.register_module(name="LastNorm", module=lambda: cut_by_trace(LastNorm(), name="net", image_size=(32, 32)))
    try:
        model = make(dict(type="LastNorm"), RESMLP, "T1-3+S4").train()
    finally:
        registry._module_dict.pop("LastNorm")
    alone = copy.deepcopy(model.student).train()
    alone(model.prepare(images, "student"))
    model.losses(images, Batch(labels))
    assert torch.equal(model.student.net.norm.running_mean, alone.net.norm.running_mean)
    own = model.fusions["fusion"].statistics["head"].named()
    assert own["norm.num_batches_tracked"] == 1 and not torch.equal(
        own["norm.running_mean"], alone.net.norm.running_mean
    )


def test_what_cannot_be_joined_is_one_line_with_both_shapes(make: Make, plugins: Any) -> None:
    class Picky:
        def build(self, student_specs, teacher_specs, splice):  # type: ignore[no-untyped-def]
            raise ValueError("maps only")

    plugins.registries.fusions.register_module(name="Picky", module=Picky)
    try:
        with pytest.raises(ConfigError) as caught:
            make(CNN, VIT, fusion=dict(type="Picky", splice="S1-3+T4"))
    finally:
        plugins.registries.fusions._module_dict.pop("Picky")
    assert caught.value.problems == [
        "model.fusion: splice S1-3+T4 cannot be built (S3_T4 from NCHW 256 x 2x2 to NLC 24 x 4x4 + 1 prefix tokens): "
        "maps only"
    ]


def test_it_owns_junctions_and_statistics_only(make: Make) -> None:
    model = make(CNN, RESMLP, "T1-3+S4")
    names = {n.split(".")[0] for n in model.fusions["fusion"].state_dict()}
    assert names == {"junctions", "statistics"}
    shared = {id(p) for p in (*model.student.parameters(), *model.teacher.parameters())}
    assert not shared & {id(p) for p in model.fusions.parameters()}


def test_a_strategy_that_forgets_a_junction_is_told_so(make: Make, plugins) -> None:  # type: ignore[no-untyped-def]
    class Forgetful:
        def build(self, student_specs, teacher_specs, splice):  # type: ignore[no-untyped-def]
            return torch.nn.ModuleDict()

    registry = plugins.registries.fusions
    registry.register_module(name="Forgetful", module=Forgetful)
    try:
        with pytest.raises(
            ConfigError, match=r"'Forgetful' built no junctions for the splice S1-3\+T4, which has S3_T4"
        ):
            make(fusion=dict(type="Forgetful"))
    finally:
        registry._module_dict.pop("Forgetful")
