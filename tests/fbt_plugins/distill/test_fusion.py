"""Splices on real pairs: they build, nothing runs twice, and gradients go where they belong."""

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import CNN, CONVNEXT, DEIT, RESMLP, SWIN, VIT
from fbt_architectures.traced_cut import cut_by_trace

from fbt_plugins.distill.distiller import Distiller
from fbt_plugins.distill.splice import enumerate_splices
from fbt_plugins.errors import ConfigError, PluginError
from fbt_plugins.models.knowledge import Batch

PAIRS = [(RESMLP, CONVNEXT), (CNN, SWIN), (VIT, CNN), (SWIN, DEIT), (DEIT, RESMLP), (CONVNEXT, VIT)]
CUTS = ["S1-3+T4", "T1-3+S4", "S1+T2+S3-4", "S1-4+Thead", "T1-4+Shead", "T1-2+S3+T4"]
SPLICES = [str(s) for switches in (1, 2) for s in enumerate_splices(switches=switches)]
Make = Callable[..., Distiller]


@pytest.mark.parametrize(
    ("splice", "student", "teacher"), [(splice, *pair) for splice, pair in zip(CUTS, PAIRS, strict=True)]
)
def test_every_cut_gives_finite_losses_and_a_gradient_to_all_that_is_trained(
    make: Make, images: torch.Tensor, labels: torch.Tensor, splice: str, student: dict, teacher: dict
) -> None:
    model = make(student, teacher, splice).train()
    losses = model.losses(images, Batch(labels))
    assert len(losses) == 7 and all(torch.isfinite(v) for v in losses.values())
    sum(losses.values()).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    assert all(p.grad is None for p in model.teacher.parameters())


def test_each_stage_runs_once_in_its_own_model_and_once_in_the_spliced_tail(
    make: Make, images: torch.Tensor, labels: torch.Tensor
) -> None:
    model = make(CNN, RESMLP, SPLICES).train()
    fusion = model.fusions["fusion"]
    ran: Counter[str] = Counter()
    for letter, owner in (("S", model.student), ("T", model.teacher)):
        for number, part in enumerate([*owner.stages, owner.head], 1):
            part.register_forward_hook(lambda *_, key=f"{letter}{number}": ran.update([key]))
    for number, splice in enumerate(fusion.splices):
        model.step = replace(model.step, splices=(number,))
        ran.clear()
        model.losses(images, Batch(labels))
        expected = Counter({f"{letter}{n}": 1 for letter in "ST" for n in range(1, 6)})
        expected.update(f"{p.owner}{n}" for p in splice.pieces[1:] for n in p.stages)
        expected.update([f"{splice.pieces[-1].owner}5"])
        assert ran == expected, splice


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
        registry.module_dict.pop("LastNorm")
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
        plugins.registries.fusions.module_dict.pop("Picky")
    assert caught.value.problems == [
        "model.fusion: splice S1-3+T4 cannot be built (S3_T4 from NCHW 28 x 2x2 to NLC 24 x 4x4 + 1 prefix tokens): "
        "maps only"
    ]


def test_it_owns_junctions_and_statistics_only(make: Make) -> None:
    model = make(CNN, RESMLP, "T1-3+S4")
    names = {n.split(".")[0] for n in model.fusions["fusion"].state_dict()}
    assert names == {"junctions", "statistics"}
    shared = {id(p) for p in (*model.student.parameters(), *model.teacher.parameters())}
    assert not shared & {id(p) for p in model.fusions.parameters()}


def copied(make: Make, splice: Any, **models: Any) -> Distiller:
    return make(fusion=dict(type="L2GFusion", splice=splice, tail="copied"), **models)


@pytest.mark.parametrize(
    ("splice", "student", "teacher"), [(splice, *pair) for splice, pair in zip(CUTS, PAIRS, strict=True)]
)
def test_a_copied_tail_starts_as_the_borrowed_one(
    make: Make, images: torch.Tensor, splice: str, student: dict, teacher: dict
) -> None:
    borrowed = make(student, teacher, splice).eval()
    own = copied(make, splice, student=student, teacher=teacher).eval()
    own.fusions["fusion"].junctions.load_state_dict(borrowed.fusions["fusion"].junctions.state_dict())
    logits = [m.predict(images, ["fusion"])["fusion"] for m in (borrowed, own)]
    assert torch.equal(*logits)
    double = own.double().predict(images.double(), ["fusion"])["fusion"]  # it moves with the rest
    torch.testing.assert_close(double.float(), logits[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("splice", ["S1-3+T4", "S1+T2+S3-4"])
def test_a_copied_tail_is_trained_and_leaves_student_and_teacher_alone(
    make: Make, images: torch.Tensor, labels: torch.Tensor, splice: str
) -> None:
    model = copied(make, splice, student=CNN, teacher=SWIN, edges=["teacher_to_fusion"])
    fusion = model.fusions["fusion"]
    expected = {f"{p.owner}{n}" for p in fusion.splices[0].pieces[1:] for n in p.stages} | {"Thead", "Shead"}
    expected -= {"Shead" if splice == "S1-3+T4" else "Thead"}
    assert set(fusion.copies) == expected
    assert not fusion.statistics  # the copies' own see nothing else
    own = {id(p) for p in fusion.copies.parameters()}
    assert not own & {id(p) for m in (model.student, model.teacher) for p in m.parameters()}
    assert own <= {id(p) for p in model.parameters() if p.requires_grad}
    assert not any(p.requires_grad for p in model.teacher.parameters())
    others = {k: v.clone() for m in (model.student, model.teacher) for k, v in m.state_dict().items()}
    copies = {k: v.clone() for k, v in fusion.copies.state_dict().items()}
    model.train()
    assert all(m.training for m in fusion.modules()) and not any(m.training for m in model.teacher.modules())
    model.losses(images, Batch(labels))["teacher_to_fusion/logit"].backward()
    assert all(p.grad is not None for p in fusion.parameters())
    torch.optim.SGD(fusion.parameters(), lr=0.1).step()
    assert all(not torch.equal(v, copies[k]) for k, v in fusion.copies.named_parameters() if v.grad.any())
    for owner in (model.student, model.teacher):
        behind = {k: v for k, v in owner.state_dict().items() if "running" not in k and "num_batches" not in k}
        assert all(torch.equal(v, others[k]) for k, v in behind.items())
    # A stage of the student behind a junction is its copy: the student's weights get no gradient through F.
    for number in {4} if splice == "S1-3+T4" else {3, 4}:
        assert all(p.grad is None for p in model.student.stages[number - 1].parameters())


def test_what_a_copy_does_not_need_costs_no_memory(make: Make) -> None:
    model = copied(make, "S1-3+T4")
    (twin,) = model.fusions["fusion"]._twins.value.values()
    shared = {id(p) for p in model.teacher.parameters()}
    for number, stage in enumerate(twin.stages, 1):
        assert all((id(p) in shared) == (number < 4) for p in stage.parameters())


PATHS = ["S1+T2-4", "S1-2+T3-4", "S1-3+T4"]


def test_the_draw_is_a_function_of_the_seed(make: Make) -> None:
    fusion = dict(type="L2GFusion", splice=PATHS)
    edges = ["teacher_to_student", "teacher_to_one", "teacher_to_two"]
    model = make(fusion=dict(one=fusion, two=fusion), edges=edges).train()

    def drawn(seed: int) -> tuple[int, ...]:
        return model.plan(seed).splices

    draws = [drawn(seed) for seed in range(300)]
    assert draws == [drawn(seed) for seed in range(300)]
    assert min(Counter(draws).values()) > 15 and len(Counter(draws)) == 9  # each alike, and not both the same
    assert model.plan().splices == (0, 0)


@pytest.mark.parametrize("tail", ["borrowed", "copied"])
@pytest.mark.parametrize("paths", [PATHS, ["S1-3+T4", "T1-3+S4"]], ids=["one way", "both ways"])
def test_what_a_step_does_not_run_gets_a_gradient_of_zeros(
    make: Make, images: torch.Tensor, labels: torch.Tensor, tail: str, paths: list[str]
) -> None:
    """Only the fusion model is compared: nothing but its own path leads anywhere. Weights may even be broken."""
    edges = ["teacher_to_fusion", "fusion_to_student"]
    model = make(
        CNN, CONVNEXT, edges=edges, feature_loss=None, fusion=dict(type="L2GFusion", splice=paths, tail=tail)
    ).train()
    fusion = model.fusions["fusion"]
    for number, splice in enumerate(fusion.splices):
        model.step = replace(model.step, splices=(number,))
        running = {j.name for j in splice.junctions}
        idle = [m for name, m in fusion.junctions.items() if name not in running]
        before = [p.detach().clone() for m in idle for p in m.parameters()]
        with torch.no_grad():
            for module in idle:
                for parameter in module.parameters():
                    parameter.fill_(torch.nan)
        model.zero_grad()
        model.losses(images, Batch(labels))["teacher_to_fusion/logit"].backward()
        for name, module in fusion.junctions.items():
            for parameter in module.parameters():
                assert parameter.grad is not None and bool(parameter.grad.any()) == (name in running)
        assert all(p.grad is not None and p.grad.isfinite().all() for p in fusion.parameters())
        if tail == "borrowed" and len(paths) == 2:  # the student's stage 4 and head are in the other path
            grads = [p.grad for p in model.student.stages[3].parameters()]
            assert all(g is not None for g in grads) and any(bool(g.any()) for g in grads) == (number == 1)
        with torch.no_grad():
            for parameter, value in zip((p for m in idle for p in m.parameters()), before, strict=True):
                parameter.copy_(value)


def test_splices_share_junctions_and_keep_statistics_of_their_own(
    make: Make, images: torch.Tensor, labels: torch.Tensor
) -> None:
    model = make(CNN, RESMLP, ["T1-3+S4", "T1-2+S3-4", "S1+T2-3+S4"]).train()
    fusion = model.fusions["fusion"]
    assert list(fusion.junctions) == ["T3_S4", "T2_S3", "S1_T2"]
    assert [k for k in fusion.statistics if k.startswith("T1-2+S3-4")] == [f"T1-2+S3-4/S{n}" for n in (3, 4, "head")]
    before = {k: v.clone() for k, v in fusion.statistics.state_dict().items()}
    model.step = replace(model.step, splices=(1,))
    model.losses(images, Batch(labels))
    moved = {k for k, v in fusion.statistics.state_dict().items() if not torch.equal(v, before[k])}
    assert moved and all(k.startswith("T1-2+S3-4/") for k in moved)
    assert {k for k in before if "running" in k and k.startswith("T1-2+S3-4/")} <= moved


def test_copies_that_several_splices_share_keep_statistics_of_each(
    make: Make, images: torch.Tensor, labels: torch.Tensor
) -> None:
    model = copied(make, ["S1-3+T4", "S1-2+T3-4"], student=RESMLP, teacher=CNN).train()
    fusion = model.fusions["fusion"]
    assert set(fusion.copies) == {"T3", "T4", "Thead"}
    model.step = replace(model.step, splices=(1,))
    model.losses(images, Batch(labels))
    counts = {k: int(v) for k, v in fusion.statistics.state_dict().items() if "num_batches" in k}
    assert counts and all(v == k.startswith("S1-2+T3-4/") for k, v in counts.items())


def test_a_parameter_that_no_gradient_reaches_is_found_when_its_splice_is_drawn(
    make: Make, images: torch.Tensor, labels: torch.Tensor
) -> None:
    model = make(splice=PATHS).train()
    fusion = model.fusions["fusion"]
    fusion.junctions["S2_T3"].spare = torch.nn.Parameter(torch.zeros(1))
    for number in (0, 2):
        model.step = replace(model.step, splices=(number,))
        model.parse_losses(model.losses(images, Batch(labels)))
    model.step = replace(model.step, splices=(1,))
    with pytest.raises(PluginError, match=r"has a parameter 'S2_T3\.spare' that no loss's gradient reaches"):
        model.parse_losses(model.losses(images, Batch(labels)))


def test_any_splice_can_be_evaluated_and_the_first_stands_for_all(make: Make, images: torch.Tensor) -> None:
    paths = ["S1-3+T4", "S1-2+T3-4", "T1-2+S3-4"]
    model = make(splice=paths, feature_loss=None).eval()
    fusion = model.fusions["fusion"]
    model.step = model.plan(2)
    logits = model.predict(images, ["fusion", *(f"fusion@{path}" for path in paths)])
    assert torch.equal(logits["fusion"], logits["fusion@S1-3+T4"])
    for path in paths:
        alone = make(splice=path).eval()
        alone.load_state_dict(model.state_dict(), strict=False)
        torch.testing.assert_close(alone.predict(images, ["fusion"])["fusion"], logits[f"fusion@{path}"])
    with pytest.raises(KeyError, match="no model 'fusion@S1-2\\+T3'; did you mean 'fusion@S1-2\\+T3-4'"):
        model.predict(images, ["fusion@S1-2+T3"])
    assert fusion.title == "one splice per step: S1-3+T4, S1-2+T3-4, T1-2+S3-4"
    assert model.names == ["student", "teacher", "fusion"]


def test_stages_that_the_drawn_splice_does_not_need_are_not_run(
    make: Make, images: torch.Tensor, labels: torch.Tensor
) -> None:
    model = make(CNN, CNN, ["T1-2+S3-4", "S1-3+T4"], edges=["fusion_to_student"], feature_loss=None).train()
    ran: list[int] = []
    for number, stage in enumerate(model.teacher.stages, 1):
        stage.register_forward_hook(lambda *_, n=number: ran.append(n))
    for drawn, expected in ((0, [1, 2]), (1, [4]), (0, [1, 2])):
        model.step = replace(model.step, splices=(drawn,))
        ran.clear()
        model.losses(images, Batch(labels))
        assert ran == expected


def test_every_splice_of_a_list_that_cannot_be_built_has_its_line(make: Make) -> None:
    with pytest.raises(ConfigError) as refused:
        make(CNN, CONVNEXT, fusion=dict(type="IdentityFusion", splice=PATHS))
    assert [line.split(" cannot")[0] for line in refused.value.problems] == [f"model.fusion: splice {p}" for p in PATHS]


def test_a_strategy_that_forgets_a_junction_is_told_so(make: Make, plugins) -> None:  # type: ignore[no-untyped-def]
    class Forgetful:
        def build(self, student_specs, teacher_specs, splice):  # type: ignore[no-untyped-def]
            return torch.nn.ModuleDict()

    registry = plugins.registries.fusions
    registry.register_module(name="Forgetful", module=Forgetful)
    try:
        with pytest.raises(
            ConfigError, match=r"'Forgetful' built no junctions for the splice T1-3\+S4, which has T3_S4"
        ):
            make(fusion=dict(type="Forgetful"))
    finally:
        registry.module_dict.pop("Forgetful")
