"""DeiT's distillation: each head has a target of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import CONVNEXT, DEIT, RESMLP, VIT
from torch import Tensor

from fbt_plugins import Batch, ConfigError
from fbt_plugins.distill.distiller import Distiller

OPTIONS = dict(edges=["teacher_to_student"], splice=None, feature_loss=None, task_loss=None)
TYPES = pytest.mark.parametrize("kind", ["hard", "soft"])


@TYPES
def test_a_step_trains_each_head_with_its_own_target(
    make: Callable[..., Distiller], images: Tensor, labels: Tensor, kind: str
) -> None:
    model = make(DEIT, CONVNEXT, **OPTIONS, logit_loss=dict(type="DeiTLoss", distillation_type=kind)).train()
    total, _ = model.parse_losses(model.losses(images, Batch(labels)))
    total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.student.parameters())
    with torch.no_grad():
        known = model.know(images, {"student", "teacher"})
    ours, targets = known["student"].extra, known["teacher"].logits
    taught = torch.nn.functional.one_hot(targets.argmax(1), 10) if kind == "hard" else targets.softmax(1)
    told = {"head": torch.nn.functional.one_hot(labels, 10), "head_dist": taught}
    for (name, target), logits in zip(told.items(), (ours["class_logits"], ours["distillation_logits"]), strict=True):
        expected = 0.5 * (logits.softmax(1) - target).mean(0)  # of the cross-entropy, and of KL at tau 1
        torch.testing.assert_close(model.student.net.get_submodule(name).bias.grad, expected)


@pytest.mark.parametrize("student", [RESMLP, VIT])
def test_another_student_is_refused_before_any_step(make: Callable[..., Distiller], student: dict) -> None:
    line = "model.edges: teacher_to_student: DeiTLoss needs 'class_logits' of the student, which gives features and lo"
    with pytest.raises(ConfigError, match=line):
        make(student, CONVNEXT, **OPTIONS, logit_loss=dict(type="DeiTLoss"))
