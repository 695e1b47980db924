"""Losses of stages between models of any layout, and in a distiller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import CNN, CONVNEXT, DEIT, RESMLP, SWIN, VIT
from torch import Tensor, nn

from fbt_plugins import LOSSES, Batch, Knowledge, StageSpec
from fbt_plugins.distill.distiller import Distiller
from fbt_plugins.distill.loss_contract import ModelInfo, set_up
from fbt_plugins.errors import ConfigError
from fbt_plugins.testing.checks import MODELS

CONFIGS = [
    dict(type="ATLoss"),
    dict(type="FitNetLoss"),
    dict(type="OFAExitsLoss"),
    dict(type="SlicedWassersteinLoss", stages=(1, 2, 3, 4), projections=8),
]
every_loss = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c["type"])
Specs = list[StageSpec]


def built(config: dict, student: Specs, teacher: Specs) -> nn.Module:
    torch.manual_seed(0)
    loss = LOSSES.build(config)
    set_up(loss, ModelInfo(student, 6), ModelInfo(teacher, 8), {"num_classes": 5})
    return loss


def knowledge(specs: Specs, seed: int) -> Knowledge:
    torch.manual_seed(seed)
    stages = {i: torch.randn(spec.sizes(3)) for i, spec in enumerate(specs, 1)}
    return Knowledge(torch.randn(3, 6), torch.randn(3, 5), stages)


def value(loss: nn.Module, student: Knowledge, teacher: Knowledge) -> Tensor:
    torch.manual_seed(0)
    return loss(student, teacher, Batch(torch.tensor([0, 1, 4])))


@every_loss
@pytest.mark.parametrize("teacher", MODELS)
@pytest.mark.parametrize("student", MODELS)
def test_any_layout_learns_from_any_other(config: dict, student: str, teacher: str) -> None:
    loss = built(config, MODELS[student], MODELS[teacher])
    known = knowledge(MODELS[student], 0)
    for x in known.stages.values():
        x.requires_grad_()
    found = value(loss, known, knowledge(MODELS[teacher], 1))
    found.backward()
    assert found.isfinite() and found.ndim == 0
    assert all(x.grad.isfinite().all() for x in (*known.stages.values(), *loss.parameters()))
    reached = [x for n, x in known.stages.items() if x.grad.any()]
    assert len(reached) >= (3 if config["type"] == "ATLoss" else 4)  # one position alone has one attention map


@every_loss
def test_tokens_of_another_order_are_brought_into_row(config: dict) -> None:
    maps, tokens = MODELS["maps"], MODELS["tokens"]
    student, teacher = knowledge(tokens, 0), knowledge(maps, 1)
    expected = value(built(config, tokens, maps), student, teacher)
    order = torch.randperm(24)
    turned = [replace(spec, raster=False, order=order.argsort()) for spec in tokens]
    shuffled = Knowledge(student.features, student.logits, {n: x[:, order] for n, x in student.stages.items()})
    torch.testing.assert_close(value(built(config, turned, maps), shuffled, teacher), expected)


@every_loss
def test_an_order_that_nobody_knows_matters_to_all_but_sets(config: dict) -> None:
    unknown = [replace(spec, raster=False) for spec in MODELS["tokens"]]
    if config["type"] == "SlicedWassersteinLoss":
        built(config, unknown, MODELS["maps"])
    else:
        with pytest.raises(ConfigError, match=r"Loss: stage 1: .*order"):
            built(config, unknown, MODELS["maps"])


@every_loss
def test_its_stages_are_its_needs(config: dict) -> None:
    loss = LOSSES.build(config | dict(stages=[4, 2, 2]))
    key = "student_stages" if config["type"] == "OFAExitsLoss" else "stages"
    assert loss.needs == {key: (4, 2)} and LOSSES.build(dict(config, stages=(3,))).needs == {key: (3,)}


@every_loss
def test_a_task_loss_it_is_not(make: Callable[..., Distiller], config: dict) -> None:
    with pytest.raises(ConfigError, match="compares two models"):
        make(task_loss=config)


@pytest.mark.parametrize(
    ("config", "student", "teacher"),
    [
        (config, *pair)
        for config, pair in zip(CONFIGS, [(RESMLP, CONVNEXT), (CNN, SWIN), (SWIN, VIT), (DEIT, CNN)], strict=True)
    ],
    ids=lambda c: c.get("name", c["type"]),
)
def test_a_step_of_a_distiller(
    make: Callable[..., Distiller],
    images: Tensor,
    labels: Tensor,
    config: dict,
    student: dict[str, Any],
    teacher: dict[str, Any],
) -> None:
    options = dict(edges=["teacher_to_student"], splice=None, feature_loss=None, logit_loss=None)
    model = make(student, teacher, **options, task_loss=None, stage_loss=config).train()
    total, losses = model.parse_losses(model.losses(images, Batch(labels)))
    total.backward()
    assert losses.names == ("teacher_to_student/stage",) and total.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.edges.parameters())
    assert next(model.student.stages[0].parameters()).grad.any()
    with torch.device("meta"):  # as --check builds it
        make(student, teacher, **options, stage_loss=config)


# ---- exits -----------------------------------------------------------------------------------------------------------
