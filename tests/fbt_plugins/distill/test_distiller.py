import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import CNN, CONVNEXT, EDGES, RESMLP, SWIN, TASK, VIT
from torch import nn

from fbt_plugins.distill.distiller import Distiller
from fbt_plugins.errors import PluginError
from fbt_plugins.models.knowledge import Batch

Make = Callable[..., Distiller]


def test_losses_are_named_by_edge_and_slot(make: Make, images: torch.Tensor, labels: torch.Tensor) -> None:
    losses = make()(images, labels, mode="loss")
    assert list(losses) == ["task", *(f"{e}/{s}" for e in EDGES for s in ("feature", "logit"))]


def test_weights_of_edges_and_losses_multiply(make: Make, images: torch.Tensor, labels: torch.Tensor) -> None:
    plain = make(edges=["teacher_to_student"], splice=None).losses(images, Batch(labels))
    edge = dict(name="teacher_to_student", weight=2.0, logit_loss=dict(type="OFALoss", weight=3.0))
    task = dict(type="CrossEntropyLoss", weight=0.5)
    heavy = make(edges=[edge], splice=None, task_loss=task).losses(images, Batch(labels))
    key = "teacher_to_student"
    torch.testing.assert_close(heavy["task"], 0.5 * plain["task"])
    torch.testing.assert_close(heavy[f"{key}/feature"], 2 * plain[f"{key}/feature"])
    torch.testing.assert_close(heavy[f"{key}/logit"], 6 * plain[f"{key}/logit"])


def test_an_edge_may_have_losses_of_its_own(make: Make, images: torch.Tensor, labels: torch.Tensor) -> None:
    edge = dict(name="teacher_to_student", feature_loss=None, logit_loss=dict(type="KDLoss", temperature=4.0))
    model = make(edges=[edge, "teacher_to_fusion"])
    assert list(model.edges["teacher_to_student"].losses) == ["logit"]
    assert list(model.losses(images, Batch(labels))) == [
        "task",
        "teacher_to_student/logit",
        "teacher_to_fusion/feature",
        "teacher_to_fusion/logit",
    ]


def test_the_giver_is_constant_unless_the_config_says_otherwise(
    make: Make, images: torch.Tensor, labels: torch.Tensor
) -> None:
    for detach in (True, False):
        model = make(edges=["teacher_to_fusion", dict(name="fusion_to_student", detach=detach)]).train()
        model.losses(images, Batch(labels))["fusion_to_student/logit"].backward()
        junctions = [p.grad for p in model.fusions["fusion"].junctions.parameters()]
        assert all(g is None for g in junctions) if detach else any(g is not None for g in junctions)


def test_widths_that_differ_get_a_projector_and_equal_ones_none(make: Make) -> None:
    model = make(splice="S1-3+T4")
    (projector,) = model.edges["teacher_to_student"].projectors["feature"].maps.values()
    assert (projector.in_features, projector.out_features) == (model.student.num_features, model.teacher.num_features)
    assert not len(model.edges["teacher_to_fusion"].projectors)  # the fusion model ends in the teacher


def test_a_fusion_model_that_ends_in_both_models_has_a_projector_for_each_width(
    make: Make, images: torch.Tensor, labels: torch.Tensor
) -> None:
    """The student is 16 wide, the teacher 32; each step runs one map, and the others get gradients of zeros."""
    model = make(splice=["S1-3+T4", "T1-3+S4"]).train()
    maps = {name: list(model.edges[name].projectors["feature"].maps) for name in EDGES}
    assert maps == dict(zip(EDGES, [["16_to_32"], ["16_to_32"], ["16_to_32"]], strict=True))
    used = [{"teacher_to_student", "fusion_to_student"}, {"teacher_to_student", "teacher_to_fusion"}]
    for drawn, edges in enumerate(used):
        model.step = replace(model.step, splices=(drawn,))
        model.zero_grad()
        sum(model.losses(images, Batch(labels)).values()).backward()
        for name in EDGES:
            gradients = [p.grad for p in model.edges[name].projectors.parameters()]
            assert all(g is not None and bool(g.any()) == (name in edges) for g in gradients)


def test_plain_training_is_the_same_program_without_a_teacher(
    make: Make, images: torch.Tensor, labels: torch.Tensor
) -> None:
    model = make(RESMLP, None, None, (), feature_loss=None, logit_loss=None)
    assert model.names == ["student"] and list(model.losses(images, Batch(labels))) == ["task"]


def test_several_fusions_have_names(make: Make, images: torch.Tensor, labels: torch.Tensor) -> None:
    fusion = dict(late=dict(type="L2GFusion", splice="S1-3+T4"), early=dict(type="L2GFusion", splice="S1-2+T3-4"))
    model = make(fusion=fusion, edges=["teacher_to_late", "teacher_to_early", "early_to_student"])
    assert model.names == ["student", "teacher", "late", "early"]
    assert "teacher_to_early/logit" in model.losses(images, Batch(labels))
    assert set(model.eval().predict(images, model.names)) == set(model.names)


def warm(make: Make, **options: Any) -> Distiller:
    """FBT in which T->F is alone for the first 13 % of training."""
    edges = [dict(name=name, **({} if name == "teacher_to_fusion" else {"begin": 0.13})) for name in EDGES]
    return make(edges=edges, task_loss=dict(TASK, begin=0.13), **options).train()


def test_what_is_off_is_not_computed_trained_or_missing(make: Make, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Before 13 % stages 1 to 3 of the student and L2G learn from the teacher; the rest of the student waits."""
    model, plain = warm(make, student=CNN), make(CNN).train()
    ran: list[int] = []
    for number, stage in enumerate(model.student.stages, 1):
        stage.register_forward_hook(lambda *_, n=number: ran.append(n))
    model.step = model.plan(0, 0.12)
    losses = model(images, labels, mode="loss")
    total, step = model.parse_losses(losses)
    total.backward()
    expected = plain(images, labels, mode="loss")
    assert list(losses) == list(expected) and ran == [1, 2, 3]
    on = {name for name in losses if name.startswith("teacher_to_fusion")}
    assert all(torch.equal(losses[n], expected[n]) if n in on else losses[n] == 0 for n in losses)
    assert step["loss"] == sum(losses[n] for n in on)
    trained = {n for n, p in model.named_parameters() if p.grad is not None}
    waiting = [model.student.stages[3], model.student.head, model.edges["fusion_to_student"]]
    assert trained and all(p.grad is None for part in waiting for p in part.parameters())
    assert all(p.grad is not None for n in (0, 1, 2) for p in model.student.stages[n].parameters())

    model.step = model.plan(0, 0.13)
    ran.clear()
    later = model(images, labels, mode="loss")
    model.parse_losses(later)[0].backward()
    assert ran == [1, 2, 3, 4] and all(later[name] != 0 for name in later)
    never = {n for n, p in model.named_parameters() if p.grad is None}
    plain.parse_losses(expected)[0].backward()
    assert never == {n for n, p in plain.named_parameters() if p.grad is None}


def test_a_ramp_multiplies_and_does_not_touch_validation(
    make: Make, images: torch.Tensor, labels: torch.Tensor
) -> None:
    model = make(edges=[*EDGES[:2], dict(name=EDGES[2], weight=2.0, begin=0.2, ramp=0.4)])
    batch = Batch(labels)
    whole, logits = model.losses(images, batch), model.predict(images, model.names)
    model.step = model.plan(0, 0.3)
    for name, value in model.losses(images, batch).items():
        torch.testing.assert_close(value, (0.25 if name.startswith(EDGES[2]) else 1.0) * whole[name])
    model.step = model.plan(0, 0.1)
    assert model.step.on == ("task", *EDGES[:2])
    assert all(torch.equal(value, logits[name]) for name, value in model.predict(images, model.names).items())


def test_a_part_that_no_gradient_reaches_is_found_when_its_edge_begins(
    make: Make, images: torch.Tensor, labels: torch.Tensor
) -> None:
    model = warm(make)
    model.edges["fusion_to_student"].losses["logit"].spare = nn.Parameter(torch.zeros(1))
    model.step = model.plan(0, 0.0)
    model.parse_losses(model.losses(images, Batch(labels)))
    model.step = model.plan(0, 0.2)
    with pytest.raises(PluginError, match=r"has a parameter 'spare' that no loss's gradient reaches"):
        model.parse_losses(model.losses(images, Batch(labels)))


def test_a_gate_weighs_an_edge_by_its_givers_agreement_with_the_teacher(
    make: Make, images: torch.Tensor, labels: torch.Tensor
) -> None:
    """The teacher runs for it even where no edge that is on starts there."""
    edges = [dict(name="teacher_to_fusion", end=0.5), dict(name="fusion_to_student", gate="agreement", weight=3.0)]
    free_edges = ["teacher_to_fusion", dict(name="fusion_to_student", weight=3.0)]
    gated, free = (make(splice="S1-3+T4", edges=own) for own in (edges, free_edges))
    known = gated.know(images, {"teacher", "fusion"})
    same = (known["teacher"].logits.argmax(1) == known["fusion"].logits.argmax(1)).float().mean()
    given = dict(teacher_features=known["teacher"].features)
    choices = known["fusion"].logits.detach().clone()
    choices[:2] = -choices[:2]  # two of five images on which they do not agree
    for logits, part in ((known["teacher"].logits, same), (choices, torch.tensor(0.6))):
        model_losses = [m(images, labels, mode="loss", **given, teacher_logits=logits) for m in (gated, free)]
        for name, value in model_losses[0].items():
            torch.testing.assert_close(value, (part if name.startswith("fusion") else 1) * model_losses[1][name])
    gated.step = gated.plan(0, 0.6)
    assert gated.in_losses(gated.step.on) == {"student", "teacher", "fusion"} and gated(images, labels, mode="loss")


@pytest.mark.parametrize("student", [VIT, SWIN, CNN], ids=lambda c: c["name"])
def test_init_weights_leaves_pretrained_weights_alone(make: Make, student: dict) -> None:
    model = make(student)
    before = copy.deepcopy(model.state_dict())
    teacher = copy.deepcopy(model.teacher.state_dict())
    model.init_weights()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(torch.equal(teacher[k], v) for k, v in model.teacher.state_dict().items())


def test_the_teacher_is_in_no_list_that_is_trained_saved_or_copied(make: Make) -> None:
    model = make()
    teacher = {id(p) for p in model.teacher.parameters()}
    assert not teacher & {id(p) for p in model.parameters()}
    assert not any(isinstance(m, type(model.teacher)) and m is model.teacher for m in model.modules())
    assert model.to(torch.float64).teacher.net.stem[0].weight.dtype == torch.float64


def test_every_model_gets_its_own_normalisation_and_size(make: Make, images: torch.Tensor) -> None:
    model = make(
        dict(RESMLP, mean=(0.5,) * 3, std=(0.25,) * 3), dict(VIT, img_size=48, input_size=48, mean=(0.1, 0.2, 0.3))
    )
    torch.testing.assert_close(model.prepare(images, "student"), (images - 0.5) / 0.25)
    prepared = model.prepare(images, "teacher")
    assert prepared.shape == (5, 3, 48, 48)
    channel = model.prepare(torch.ones(1, 3, 32, 32), "teacher")[0, :, 0, 0]
    std = torch.tensor(model.teacher.std)
    torch.testing.assert_close(channel, (1 - torch.tensor([0.1, 0.2, 0.3])) / std, rtol=1e-4, atol=1e-4)


def test_losses_take_what_the_teacher_knows_already_and_do_not_run_it(
    make: Make, images: torch.Tensor, labels: torch.Tensor
) -> None:
    model = make(splice="S1-3+T4")
    expected = model(images, labels, mode="loss")
    known = model.know(images, {"teacher"})["teacher"]
    stored = dict(teacher_features=known.features.half(), teacher_logits=known.logits.half())
    ran: list[int] = []
    for number, stage in enumerate(model.teacher.stages, 1):
        stage.register_forward_hook(lambda *_, number=number: ran.append(number))
    losses = model(images, labels, mode="loss", view=torch.zeros(5), **stored)
    torch.testing.assert_close(losses, expected, rtol=2e-3, atol=2e-3)
    assert ran == [4]  # the stage that the fusion model borrows


def test_evaluation_gives_every_model_the_logits_it_has_alone(make: Make, images: torch.Tensor) -> None:
    model = make(CNN, CONVNEXT).eval()
    logits = model.predict(images, model.names)
    assert torch.equal(logits["student"], model.student.net(model.prepare(images, "student")))
    assert torch.equal(logits["teacher"], model.teacher.net(model.prepare(images, "teacher")))
    assert not any(v.requires_grad for v in logits.values())


def test_a_stage_loss_is_a_third_loss_of_an_edge(make: Make, images: torch.Tensor, labels: torch.Tensor) -> None:
    edge = dict(name="teacher_to_student", stage_loss=dict(type="MSELoss", weight=2.0))
    losses = make(edges=[edge], splice=None).losses(images, Batch(labels))
    assert [name.partition("/")[2] for name in losses] == ["", "feature", "logit", "stage"]


@pytest.mark.slow
def test_the_losses_of_a_step_compile_to_one_graph(make: Make, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Of a traced cut and of a declared one; a graph per stage would undo most of what compiling is for."""
    graphs: list[int] = []

    def count(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    distiller = make(student=dict(type="timm", name="test_mambaout", num_classes=10)).train()
    torch.manual_seed(1)
    expected = distiller.losses(images, Batch(labels))
    torch._dynamo.reset()
    torch.manual_seed(1)
    found = torch.compile(distiller.losses, backend=count)(images, Batch(labels))
    assert len(graphs) == 1 and {k: v.item() for k, v in found.items()} == {k: v.item() for k, v in expected.items()}


@pytest.mark.slow
def test_a_compiled_step_has_a_graph_for_each_set_of_losses_and_none_for_a_weight(
    make: Make, images: torch.Tensor, labels: torch.Tensor
) -> None:
    graphs: list[int] = []

    def count(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    student = dict(RESMLP, num_blocks=2, stages=2)
    edges = [*EDGES[:2], dict(name=EDGES[2], begin=0.2, ramp=0.4, gate="agreement")]
    model = make(student, dict(student, embed_dim=24), "S1+T2", edges).train()
    torch._dynamo.reset()
    values, batch = model.values, Batch(labels)
    compiled = torch.compile(values, backend=count)
    for progress, known in ((0.0, 1), (0.1, 1), (0.3, 2), (0.4, 2), (0.7, 2), (0.1, 2)):
        model.step = model.plan(0, progress)
        model.values = compiled
        found = model.losses(images, batch)
        model.values = values
        expected = model.losses(images, batch)
        assert {k: v.item() for k, v in found.items()} == {k: v.item() for k, v in expected.items()}
        assert len(graphs) == known
