"""Hundreds of drawn pairs, splices, image sizes and losses: each trains, or is refused in one line with both shapes.

By default 40 of the first 120 run, with more than 40 families. A draw's name says all of it;
``-m slow -k "test_a_drawn and 1041:"`` runs draw 1041 again.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from conftest import EDGES
from drawn import LARGE, ROWS, Draw, built, draws, few
from torch import Tensor, nn

from fbt_plugins import ARCHITECTURES, Batch, StagedModel
from fbt_plugins.distill.distiller import Distiller
from fbt_plugins.distill.fusion import ends
from fbt_plugins.distill.splice import Splice
from fbt_plugins.errors import ConfigError

FIRST = draws(0, ROWS, per_size=20)
FEW = few(FIRST, 40)
MANY = [d for seed in range(1, 9) for d in draws(seed, ROWS + LARGE, per_size=14)]
SHAPE = r"N\w+ \d+ x \d+x\d+( \+ \d+ prefix tokens)?(, not row by row)?"
MEETING = rf"[ST]\d_[ST]\d from {SHAPE} to {SHAPE}"
REFUSAL = re.compile(
    rf"model\.fusion: splice \S+ cannot be built \({MEETING}(, {MEETING})?\): the tokens come in an order of the "
    r"model's own; a StageSpec that has this order would do"
)


@pytest.fixture
def models(plugins: Any) -> Iterator[dict[str, StagedModel]]:
    """Models by the name under which a config finds copies of them."""
    known: dict[str, StagedModel] = {}
    ARCHITECTURES.register_module(name="drawn", module=lambda role: copy.deepcopy(known[role]))
    yield known
    ARCHITECTURES.module_dict.pop("drawn")


@pytest.mark.parametrize(
    "draw",
    [*FEW, *(pytest.param(d, marks=pytest.mark.slow) for d in [*FIRST, *MANY] if d not in FEW)],
    ids=lambda draw: str(draw),
)
def test_a_drawn_combination_trains_or_is_refused_in_one_line(draw: Draw, models: dict[str, StagedModel]) -> None:
    torch.manual_seed(draw.number)
    for role, own in (("student", draw.student), ("teacher", draw.teacher)):
        models[role] = built(own, draw.size, draw.num_classes)
    refused = _meets_unknown_order(draw, models)
    if refused:
        assert _may_be_refused(draw)
        with pytest.raises(ConfigError) as caught:
            _distiller(draw)
        assert REFUSAL.fullmatch(str(caught.value)), str(caught.value)
    else:
        _trains(_distiller(draw), draw)


def test_at_least_forty_families_are_trained_and_few_draws_refused() -> None:
    trained = [draw for draw in FEW if not _may_be_refused(draw)]
    assert len(FEW) == 40 and len({model.family for draw in trained for model in (draw.student, draw.teacher)}) >= 40
    assert 0 < len(FEW) - len(trained) < 4
    assert {draw.splice.count("+") for draw in trained} == {1, 2}


def _may_be_refused(draw: Draw) -> bool:
    return not (draw.student.ordered and draw.teacher.ordered)


def _distiller(draw: Draw) -> Distiller:
    return Distiller(
        dict(type="drawn", role="student"),
        dict(type="drawn", role="teacher"),
        fusion=dict(type="L2GFusion", splice=draw.splice, head_dim=8),
        edges=EDGES,
        feature_loss=dict(type=draw.losses[0]),
        logit_loss=dict(type=draw.losses[1]),
        task_loss=dict(type="CrossEntropyLoss"),
        image_size=draw.size,
    )


def _meets_unknown_order(draw: Draw, models: Mapping[str, StagedModel]) -> bool:
    student, teacher = (m.specs_at(m.input_size or draw.size) for m in (models["student"], models["teacher"]))
    junctions = Splice.parse(draw.splice, len(student), len(teacher)).junctions
    met = [spec for junction in junctions for spec in ends(junction, student, teacher)]
    return any(not spec.raster and spec.order is None for spec in met)


def _trains(model: Distiller, draw: Draw) -> None:
    """One step: finite losses, gradients where they belong, and nobody's buffers but those that may move."""
    model.train()
    assert model.teacher is not None
    images, labels = torch.rand(4, 3, *draw.size), torch.randint(draw.num_classes, (4,))
    torch.manual_seed(draw.number)  # some drop paths by default
    reached, buffers = _alone(model, images, labels)
    teacher = {k: v.clone() for k, v in model.teacher.state_dict().items()}

    torch.manual_seed(draw.number)
    losses = model.losses(images, Batch(labels))
    assert len(losses) == 7 and all(torch.isfinite(v) for v in losses.values()), losses
    fusion = model.fusions["fusion"]
    (losses["teacher_to_fusion/feature"] + losses["teacher_to_fusion/logit"]).backward(retain_graph=True)
    mine = reached & _of_pieces(model)
    assert _with_gradient(model.student.net) == mine
    assert _with_gradient(fusion.junctions) == {n for n, _ in fusion.junctions.named_parameters()}
    assert all(_moves(junction) for junction in fusion.junctions.values())

    model.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    assert _with_gradient(model.student.net) == reached
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert all(p.grad is None for p in model.teacher.parameters())
    assert all(torch.equal(teacher[k], v) for k, v in model.teacher.state_dict().items())
    for name, buffer in model.student.net.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


def _alone(model: Distiller, images: Tensor, labels: Tensor) -> tuple[set[str], dict[str, Tensor]]:
    """Which parameters of the student a step without any fusion reaches, and its buffers afterwards."""
    student = copy.deepcopy(model.student)
    known = student.train().knowledge(model.prepare(images, "student"))
    (nn.functional.cross_entropy(known.logits, labels) + known.features.sum()).backward()
    return _with_gradient(student.net), dict(student.net.named_buffers())


def _of_pieces(model: Distiller) -> set[str]:
    """Names of the student's parameters that the fusion model runs."""
    pieces = model.fusions["fusion"].splices[0].pieces
    parts = [model.student.stages[n - 1] for piece in pieces if piece.owner == "S" for n in piece.stages]
    parts += [model.student.head] if pieces[-1].owner == "S" else []
    owned = {id(p) for part in parts for p in part.parameters()}
    return {n for n, p in model.student.net.named_parameters() if id(p) in owned}


def _with_gradient(module: nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.grad is not None}


def _moves(junction: nn.Module) -> bool:
    return any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in junction.parameters())
