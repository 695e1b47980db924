"""What a distiller is built from, and all that does not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import CNN, EDGES, RESMLP, TASK
from torch import nn

from fbt_plugins.distill.distiller import Distiller
from fbt_plugins.errors import ConfigError
from fbt_plugins.models.knowledge import Batch

Make = Callable[..., Distiller]


@pytest.mark.parametrize(
    ("options", "reasons"),
    [
        (dict(teacher=None), ["a fusion model needs a teacher"]),
        (dict(student=dict(RESMLP, num_classes=7)), ["class counts differ: model.student has 7, model.teacher has 10"]),
        (dict(data_info=dict(num_classes=100)), ["the data set has 100"]),
        (
            dict(student=dict(RESMLP, num_classes=0)),
            [
                "CrossEntropyLoss needs logits, and the student has no classifier",
                "teacher_to_student: OFALoss needs logits",
            ],
        ),
        (dict(edges=["teacher_to_pupil", "teacher_to_fusion"]), ["no model 'pupil'"]),
        (dict(edges=["fusion_to_teacher", "teacher_to_fusion"]), ["the teacher cannot receive"]),
        (
            dict(edges=["teacher-student", "teacher_to_fusion"]),
            ["write giver_to_receiver; did you mean 'teacher_to_student'"],
        ),
        (dict(edges=["teacher_to_student"]), ["no edge mentions 'fusion'"]),
        (dict(edges=[], splice=None), ["a teacher but no edge"]),
        (dict(edges=["teacher_to_student"] * 2), ["is there twice"]),
        (dict(edges=[dict(name="teacher_to_student", wieght=2)]), ["no option 'wieght'; did you mean 'weight'"]),
        (dict(edges=["teacher_to_fusion"], task_loss=None), ["nothing trains the student"]),
        (
            dict(edges=[dict(name="teacher_to_fusion", begin=0.5, end=0.2)]),
            ["model.edges: teacher_to_fusion: begin=0.5 must be less than end=0.2"],
        ),
        (dict(task_loss=dict(TASK, ramp=2)), ["model.task_loss: ramp is a fraction of training, from 0 to 1, not 2"]),
        (
            dict(edges=[dict(name="teacher_to_fusion", begin=0.2)], task_loss=dict(TASK, begin=0.13)),
            ["model: no loss is on from 0 to 0.13 of training"],
        ),
        (
            dict(edges=["teacher_to_fusion", dict(name="fusion_to_student", gate="agree")]),
            ["fusion_to_student: no gate 'agree'; did you mean 'agreement'?"],
        ),
        (
            dict(edges=[dict(name="teacher_to_student", gate="agreement")], splice=None),
            ["gate='agreement' compares with the teacher, and the giver is the teacher itself"],
        ),
        (dict(edges=[dict(name="teacher_to_fusion", feature_loss=None, logit_loss=None)]), ["has no loss"]),
        (dict(splice="S1-3+T9"), ["model.fusion: splice 'S1-3+T9': 'T9' is out of range"]),
        (
            dict(fusion=dict(type="L2GFusion", window=0, tail="copy", splice=["S1-3+T9", "auto", "C1-3+M4"])),
            [
                "tail 'copy'; did you mean 'copied'?",
                "'T9' is out of range",
                "splice 'C1-3+M4' is there twice: 'auto' is the same with these models",
                "window must be positive",
            ],
        ),
        (dict(fusion={"a@b": dict(type="L2GFusion")}, edges=["teacher_to_a@b"]), ["'a@b' cannot be a fusion's name"]),
        (
            dict(
                splice=["S1-3+T4", "T1-3+S4"],
                feature_loss=dict(type="CRDLoss"),
                data_info=dict(num_samples=9),
                edges=EDGES[1:],
            ),
            [
                f"{name}: features of 'fusion' are 16 or 32 wide, for its splices end in both models, and CRDLoss takes"
                for name in EDGES[1:]
            ],
        ),
        (
            dict(student=dict(RESMLP, name="resmlp_s4_patch4_23"), teacher=dict(CNN, nmae=1)),
            ["timm has no model", "resnet18"],
        ),
    ],
)
def test_says_everything_that_does_not_fit(make: Make, options: dict, reasons: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        make(**options)
    assert all(any(r in line for line in error.value.problems) for r in reasons), error.value.problems


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (dict(logit_loss="KDLoss"), "model.logit_loss: expected dict(type='KDLoss'), got 'KDLoss'"),
        (
            dict(logit_loss="KDLos"),
            "model.logit_loss: expected dict(type=NAME) with the name of a loss, got 'KDLos'; did you mean 'KDLoss' or "
            "'RKDLoss' or 'DKDLoss'?",
        ),
        (
            dict(feature_loss=5),
            "model.feature_loss: expected dict(type=NAME) with the name of a loss, got 5; fbt plugins lists the names",
        ),
        (
            dict(stage_loss=["FitNetLoss"]),
            "model.stage_loss: expected dict(type=NAME) with the name of a loss, got ['FitNetLoss']; did you mean "
            "'FitNetLoss'?",
        ),
        (dict(logit_loss=nn.MSELoss()), "model.logit_loss: expected dict(type='MSELoss'), got MSELoss"),
        (
            dict(task_loss=nn.ReLU()),
            "model.task_loss: expected dict(type=NAME) with the name of a loss, got ReLU; fbt plugins lists the names",
        ),
        (
            dict(task_loss="CrossEntropyLoss"),
            "model.task_loss: expected dict(type='CrossEntropyLoss'), got 'CrossEntropyLoss'",
        ),
        (dict(fusion="L2GFusion"), "model.fusion: expected dict(type='L2GFusion'), got 'L2GFusion'"),
        (
            dict(edges=[*EDGES[1:], dict(name=EDGES[0], logit_loss="KDLoss")]),
            f"model.edges.{EDGES[0]}.logit_loss: expected dict(type='KDLoss'), got 'KDLoss'",
        ),
    ],
)
def test_a_name_in_the_place_of_a_dict_is_one_line(make: Make, options: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        make(**options)
    assert error.value.problems == [line]


def test_a_loss_gets_the_stages_it_needs_and_is_set_up_once(
    make: Make,
    images: torch.Tensor,
    labels: torch.Tensor,
    plugins,  # type: ignore[no-untyped-def]
) -> None:
    class StageLoss(nn.Module):
        needs = {"stages": (2, 4)}  # noqa: RUF012

        def setup(self, student_specs, teacher_specs, data_info) -> None:  # type: ignore[no-untyped-def]
            self.project = nn.Linear(student_specs[1].channels, teacher_specs[1].channels)
            self.samples = data_info["num_samples"]

        def forward(self, student, teacher, batch):  # type: ignore[no-untyped-def]
            assert set(student.stages) >= {2, 4} and set(teacher.stages) >= {2, 4}
            return (self.project(student.stages[2]).mean() - teacher.stages[4].mean()) ** 2

    registry = plugins.registries.losses
    registry.register_module(name="StageLoss", module=StageLoss)
    try:
        options = dict(edges=["teacher_to_student"], splice=None, feature_loss=dict(type="StageLoss"))
        model = make(**options, data_info=dict(num_classes=10, num_samples=77))
        model.losses(images, Batch(labels))["teacher_to_student/feature"].backward()
        loss = model.edges["teacher_to_student"].losses["feature"]
        assert loss.samples == 77 and loss.project.weight.grad is not None
        with pytest.raises(ConfigError, match="needs stage 2 of the fusion, which gives features and logits only"):
            make(edges=["teacher_to_fusion"], feature_loss=dict(type="StageLoss"))
    finally:
        registry.module_dict.pop("StageLoss")


def test_a_task_loss_is_set_up_and_gets_stages_too(
    make: Make,
    images: torch.Tensor,
    labels: torch.Tensor,
    plugins,  # type: ignore[no-untyped-def]
) -> None:
    class TaskLoss(nn.Module):
        needs = {"stages": (3,)}  # noqa: RUF012

        def setup(self, student_specs, teacher_specs, data_info) -> None:  # type: ignore[no-untyped-def]
            assert not teacher_specs and "teacher_features" not in data_info
            self.exit = nn.Linear(student_specs[2].channels, data_info["num_classes"])
            self.widths = (student_specs[2].channels, data_info["student_features"])

        def forward(self, student, teacher, batch):  # type: ignore[no-untyped-def]
            return nn.functional.cross_entropy(self.exit(student.stages[3].mean(1)), batch.labels)

    registry = plugins.registries.losses
    registry.register_module(name="TaskLoss", module=TaskLoss)
    try:
        model = make(task_loss=dict(type="TaskLoss"), data_info=dict(num_classes=10))
        model.losses(images, Batch(labels))["task"].backward()
        loss = model.edges["task"].losses["task"]
        assert loss.exit.weight.grad is not None and loss.widths == (16, 16)
    finally:
        registry.module_dict.pop("TaskLoss")


def test_a_stage_loss_of_all_edges_is_for_models_that_show_stages(
    make: Make, images: torch.Tensor, labels: torch.Tensor
) -> None:
    options = dict(feature_loss=None, stage_loss=dict(type="ATLoss"))
    names = list(make(**options).losses(images, Batch(labels)))
    assert [n for n in names if n.endswith("/stage")] == ["teacher_to_student/stage"] and len(names) == 5
    with pytest.raises(ConfigError, match=r"stage_loss: no edge uses it; add an edge between teacher and student"):
        make(edges=["teacher_to_fusion", "fusion_to_student"], **options)


@pytest.mark.parametrize(("ours", "theirs"), [(0, 0), (0, 10), (10, 0), (10, 7)])
def test_classes_may_differ_where_no_logits_are_compared(
    make: Make, images: torch.Tensor, ours: int, theirs: int
) -> None:
    """Also those of a fusion model, whose head is the teacher's; what is not compared is no part of a sample either."""
    models = dict(student=dict(RESMLP, num_classes=ours), teacher=dict(CNN, num_classes=theirs))
    model = make(**models, splice="S1-3+T4", logit_loss=None, task_loss=None).eval()
    assert len(model.losses(images, Batch(None))) == 3
    data = {"inputs": images, "labels": torch.zeros(5).long(), "index": torch.arange(5)}
    sample = model.sample(data, wants={"logits", "features"})
    known = {name for name in sample if name in model.names}
    assert known == ({"student"} if ours else set()) | (set(model.names) if ours == theirs != 0 else set())
    assert {f"features/{name}" for name in model.names} < sample.keys()
