"""What a distiller is built from: configs, edges, gates, schedules and splices."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import CNN, EDGES, RESMLP, TASK
from torch import nn

from fbt_plugins import Knowledge
from fbt_plugins.distill.distiller import Distiller
from fbt_plugins.distill.edge_gates import agreement
from fbt_plugins.distill.edge_schedule import Schedule, checked_weight, gap
from fbt_plugins.distill.splice import Junction, Piece, Splice, enumerate_splices, in_words, more_local, parse_all
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
        (dict(logit_loss="KDLoss"), "model.logit_loss: expected a dict such as dict(type='KDLoss'), got 'KDLoss'"),
        (dict(logit_loss="OFALoss"), "model.logit_loss: expected a dict such as dict(type='OFALoss'), got 'OFALoss'"),
        (dict(feature_loss=5), "model.feature_loss: expected a dict such as dict(type='InfoNCELoss'), got 5"),
        (
            dict(stage_loss=["FitNetLoss"]),
            "model.stage_loss: expected a dict such as dict(type='FitNetLoss'), got ['FitNetLoss']",
        ),
        (
            dict(logit_loss=nn.MSELoss()),
            "model.logit_loss: expected a dict such as dict(type='KDLoss'), got MSELoss",
        ),
        (
            dict(task_loss="CrossEntropyLoss"),
            "model.task_loss: expected a dict such as dict(type='CrossEntropyLoss'), got 'CrossEntropyLoss'",
        ),
        (dict(fusion="L2GFusion"), "model.fusion: expected a dict such as dict(type='L2GFusion'), got 'L2GFusion'"),
        (
            dict(edges=[*EDGES[1:], dict(name=EDGES[0], logit_loss="KDLoss")]),
            f"model.edges.{EDGES[0]}.logit_loss: expected a dict such as dict(type='KDLoss'), got 'KDLoss'",
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


# ---- edge -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({}, {0.0: 1, 0.5: 1, 0.999: 1}),
        (dict(begin=0.13), {0.0: 0, 12 / 100: 0, 13 / 100: 1, 0.99: 1}),
        (dict(begin=0.2, ramp=0.4), {0.1: 0, 0.2: 0, 0.3: 0.25, 0.4: 0.5, 0.6: 1, 0.9: 1}),
        (dict(ramp=1.0), {0.0: 0, 0.25: 0.25, 0.75: 0.75}),
        (dict(end=0.5), {0.0: 1, 0.49: 1, 0.5: 0, 0.9: 0}),
        (dict(begin=0.1, ramp=0.2, end=0.3), {0.05: 0, 0.2: 0.5, 0.3: 0}),
    ],
)
def test_the_weight_is_a_line_between_two_fractions(options: dict[str, Any], weights: dict[float, float]) -> None:
    schedule = Schedule(**options)
    for progress, weight in weights.items():
        assert schedule.weight(progress) == pytest.approx(weight)
        assert schedule.covers(progress) or weight == 0
    assert schedule.always_on == (not {"begin", "end"} & options.keys())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (dict(begin=-0.1), "begin is a fraction of training, from 0 to 1, not -0.1"),
        (dict(ramp=13), "ramp is a fraction of training, from 0 to 1, not 13"),
        (dict(end="half"), "end is a fraction of training, from 0 to 1, not 'half'"),
        (dict(begin=True), "begin is a fraction"),
        (dict(begin=float("nan")), "begin is a fraction"),
        (dict(begin=1.0), r"begin=1.0 must be less than end=1.0"),
        (dict(begin=0.5, end=0.2), r"begin=0.5 must be less than end=0.2"),
        (dict(begin=0.9, ramp=0.2), r"begin=0.9 and ramp=0.2 go beyond end=1.0"),
    ],
)
def test_what_is_no_fraction_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Schedule(**options)


def test_a_time_without_any_loss_is_found() -> None:
    def found(*spans: tuple[float, float]) -> tuple[float, float] | None:
        return gap([Schedule(begin=begin, end=end) for begin, end in spans])

    assert found((0, 1), (0.2, 0.3)) is None and found((0.5, 1), (0, 0.5)) is None
    assert found((0.13, 1)) == (0, 0.13)
    assert found((0, 0.4), (0.1, 0.2), (0.6, 1)) == (0.4, 0.6)
    assert found((0, 0.4), (0, 0.7)) == (0.7, 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "2", None, True])
def test_a_weight_is_a_finite_number(value: Any) -> None:
    assert checked_weight(2, "model.task_loss") == 2.0
    with pytest.raises(ConfigError, match=f"model.task_loss: weight must be a finite number, not {value!r}"):
        checked_weight(value, "model.task_loss")


# ---- edge gates -----------------------------------------------------------------------------------------------------


def test_agreement_is_the_part_of_images_with_the_same_class() -> None:
    giver = torch.tensor([[2.0, 1, 0], [0, 5, 1], [1, 0, 3], [9, 0, 0]], requires_grad=True)
    teacher = torch.tensor([[7.0, 1, 0], [0, 1, 5], [0, 0, 1], [1, 0, 0]])  # another class in the second row
    value = agreement(Knowledge(giver, giver), Knowledge(teacher, teacher))
    assert value.item() == 0.75 and not value.requires_grad


# ---- splice ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["S1-3+T4", "T1-3+S4", "S1-2+T3-4", "S1+T2+S3-4", "S1-4+Thead", "S1-3+Thead", "T1-4+Shead"]
)
def test_prints_what_it_parsed(text: str) -> None:
    assert str(Splice.parse(text)) == text


def test_auto_is_the_papers_three_plus_one() -> None:
    assert str(Splice.parse("auto")) == "S1-3+T4"
    assert str(Splice.parse("auto", student_stages=8, teacher_stages=6)) == "S1-7+T6"
    assert str(Splice.parse("auto", student_stages=1, teacher_stages=2)) == "S1+T2"
    assert str(Splice.parse("auto", student_stages=4, teacher_stages=1)) == "S1-3+Thead"
    assert str(Splice.parse("auto", first="T")) == "T1-3+S4"  # the CNN teaches
    assert str(Splice.parse("auto", student_stages=8, teacher_stages=6, first="T")) == "T1-5+S8"
    assert str(Splice.parse("auto", student_stages=1, teacher_stages=4, first="T")) == "T1-3+Shead"


FAMILIES = ("cnn", "hybrid", "attention", "mlp")


def test_the_more_local_model_is_first_and_of_equals_the_student() -> None:
    teacher_first = {("hybrid", "cnn"), *((s, t) for s in ("attention", "mlp") for t in ("cnn", "hybrid"))}
    for student, teacher in itertools.product(FAMILIES, repeat=2):
        assert more_local(student, teacher) == ("T" if (student, teacher) in teacher_first else "S")


@pytest.mark.parametrize(
    ("text", "student_first", "teacher_first"),
    [
        ("C1-3+M4", "S1-3+T4", "T1-3+S4"),
        ("M1-3+C4", "T1-3+S4", "S1-3+T4"),
        ("C1-3+Mhead", "S1-3+Thead", "T1-3+Shead"),
        ("C1+M2+C3-4", "S1+T2+S3-4", "T1+S2+T3-4"),
        ("S1-3+T4", "S1-3+T4", "S1-3+T4"),
    ],
)
def test_roles_are_read_as_owners(text: str, student_first: str, teacher_first: str) -> None:
    for first, owners in (("S", student_first), ("T", teacher_first)):
        splice = Splice.parse(text, first=first)
        assert (str(splice), splice.written) == (owners, text) and splice == Splice.parse(owners)


UNDECIDED = "; neither is more local than the other, so the student is first (a model's family=... says otherwise)"
HYBRID = (
    "; a hybrid counts as less local than a CNN and more than attention or an MLP (a model's family=... says otherwise)"
)


@pytest.mark.parametrize(
    ("texts", "families", "words"),
    [
        ("auto", "mlp cnn", "auto is T1-3+S4: the teacher (cnn) gives the first stages, the student (mlp) the rest"),
        (
            "C1-3+Mhead",
            "mlp cnn",
            "C1-3+Mhead is T1-3+Shead: the teacher (cnn) gives the stages, the student (mlp) the head",
        ),
        ("S1-3+T4", "mlp cnn", "S1-3+T4: the student (mlp) gives the first stages, the teacher (cnn) the rest"),
        ("C1+M2+C3-4", "cnn mlp", "C1+M2+C3-4 is S1+T2+S3-4; C is the student (cnn), M the teacher (mlp)"),
        ("S1+T2+S3-4", "cnn mlp", "S1+T2+S3-4"),
        (
            ["auto", "S1-3+T4"],
            "mlp cnn",
            "one per step: auto is T1-3+S4, S1-3+T4; C is the teacher (cnn), M the student (mlp)",
        ),
        (
            "auto",
            "mlp attention",
            "auto is S1-3+T4: the student (mlp) gives the first stages, the teacher (attention) the rest" + UNDECIDED,
        ),
        (
            "auto",
            "hybrid cnn",
            "auto is T1-3+S4: the teacher (cnn) gives the first stages, the student (hybrid) the rest" + HYBRID,
        ),
    ],
)
def test_a_splice_in_words(texts: str | list[str], families: str, words: str) -> None:
    both = dict(zip(("student", "teacher"), families.split(), strict=True))
    assert in_words(parse_all(texts, first=more_local(**both)), both) == words


def test_junctions_name_who_gives_and_who_takes() -> None:
    splice = Splice.parse("S1+T2+S3-4")
    assert splice.start == Piece("S", 1, 1)
    assert splice.junctions == [Junction("S", 1, "T", 2), Junction("T", 2, "S", 3)]
    assert Splice.parse("S1-3+Thead").junctions == [Junction("S", 3, "T", 5)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("S1-4", "never switches"),
        ("S1-3", "never switches"),
        ("S1-3+T5", "out of range"),
        ("S1-3+T0", "out of range"),
        ("S3-1+T4", "out of range"),
        ("S2-3+T4", "begin with stage 1"),
        ("S1-2+T3", "end with the teacher's last stage"),
        ("Thead+S1-4", "only be the last piece"),
        ("S1+S2+T3-4", "side by side"),
        ("S1-2+T3+S2-4", "go back"),
        ("S1+T1-4", "go back"),
        ("S1-3+X4", "'X4' is not a piece: there is no model 'X'; S is the student, T the teacher, C the more local"),
        ("s1-3+t4", "'s1-3' is not a piece; did you mean 'S1-3\\+T4'"),
        ("C1-3 + mHead", "'C1-3 ' is not a piece; did you mean 'C1-3\\+Mhead'"),
        ("atuo", "'atuo' is not a piece; did you mean 'auto'"),
        ("C1-3+T4", "not both in one; C is the student here: write 'S1-3\\+T4'"),
        ("C1-3+M5", "'M5' is out of range: the teacher has stages 1 to 4"),
        ("C2-3+M4", "begin with stage 1, which takes images, not with C2-3"),
        ("", "not a piece"),
    ],
)
def test_says_what_is_wrong_with_a_splice(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as error:
        Splice.parse(text)
    assert "\n" not in str(error.value)


def test_enumerates_every_cut_once_and_all_can_be_parsed() -> None:
    found = [str(s) for s in enumerate_splices(4, 4)]
    assert sorted(found) == sorted(
        ["S1+T2-4", "S1-2+T3-4", "S1-3+T4", "S1-4+Thead", "T1+S2-4", "T1-2+S3-4", "T1-3+S4", "T1-4+Shead"]
    )
    twice = [str(s) for s in enumerate_splices(4, 4, switches=2)]
    assert len(twice) == len(set(twice)) == 12
    assert all(str(Splice.parse(text)) == text for text in found + twice)


def test_a_list_of_splices_is_read_whole_or_refused_line_by_line() -> None:
    assert parse_all("auto") == [Splice.parse("S1-3+T4")]
    assert list(map(str, parse_all(["S1+T2-4", "auto"]))) == ["S1+T2-4", "S1-3+T4"]
    with pytest.raises(ConfigError) as refused:
        parse_all(["S1-3+T5", "S1-3+T4", "S1-4", "auto"])
    lines = refused.value.problems
    assert len(lines) == 3 and "'T5' is out of range" in lines[0] and "'S1-4': it never switches" in lines[1]
    assert lines[2] == "splice 'auto' is there twice: 'S1-3+T4' is the same with these models"
    with pytest.raises(ConfigError, match=r"'T1-3\+S4' is there twice: 'auto' is the same with these models"):
        parse_all(["auto", "T1-3+S4"], first="T")
    assert len(parse_all(["auto", "S1-3+T4"], first="T")) == 2
    for nothing in ([], 4, [["S1-3+T4"]]):
        with pytest.raises(ConfigError):
            parse_all(nothing)  # type: ignore[arg-type]


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
