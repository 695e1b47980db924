"""What holds for every loss: precision, labels, batches of one, gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fbt_plugins import LOSSES, Batch, Knowledge
from fbt_plugins.errors import ConfigError

CONFIGS = [
    dict(type="CrossEntropyLoss", label_smoothing=0.1),
    dict(type="InfoNCELoss"),
    dict(type="InfoNCELoss", symmetric=True, learnable=False, temperature=0.2),
    dict(type="KDLoss", temperature=4.0),
    dict(type="MSELoss"),
    dict(type="OFALoss", gamma=1.3),
    dict(type="OFALoss", gamma=1.3, modulate="all", temperature=2.0),
]
every_loss = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: " ".join(map(str, c.values())))


def knowledge(seed: int, n: int = 4, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Knowledge:
    generator = torch.Generator().manual_seed(seed)
    features, logits = (torch.randn(n, d, generator=generator, dtype=torch.float64) * scale for d in (6, 5))
    return Knowledge(features.to(dtype), logits.to(dtype))


def hard(n: int = 4) -> Batch:
    return Batch(torch.arange(n) % 5)


@every_loss
def test_gradients_are_right(config: dict) -> None:
    loss: nn.Module = LOSSES.build(config).double()
    teacher = knowledge(1, dtype=torch.float64)

    def value(features: Tensor, logits: Tensor) -> Tensor:
        return loss(Knowledge(features, logits), teacher, hard())

    student = knowledge(0, dtype=torch.float64)
    inputs = student.features.requires_grad_(), student.logits.requires_grad_()
    assert torch.autograd.gradcheck(value, inputs)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(config: dict, dtype: torch.dtype) -> None:
    loss = LOSSES.build(config)
    student, teacher = knowledge(0, dtype=dtype), knowledge(1, dtype=dtype)
    with torch.autocast("cpu", dtype):
        value = loss(student, teacher, hard())
    exact = loss(*(Knowledge(k.features.float(), k.logits.float()) for k in (student, teacher)), hard())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, exact, rtol=0, atol=0)


@every_loss
def test_float64_stays_float64(config: dict) -> None:
    value = LOSSES.build(config)(knowledge(0, dtype=torch.float64), knowledge(1, dtype=torch.float64), hard())
    assert value.dtype == torch.float64


@every_loss
@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_extreme_inputs_give_finite_losses_and_gradients(config: dict, scale: float) -> None:
    loss = LOSSES.build(config)
    student = knowledge(0, scale=scale)
    student = Knowledge(student.features.requires_grad_(), student.logits.requires_grad_())
    value = loss(student, knowledge(1, scale=scale), hard())
    value.backward()
    assert value.ndim == 0 and torch.isfinite(value)
    for part in (student.features, student.logits, *loss.parameters()):
        assert part.grad is None or torch.isfinite(part.grad).all()


@every_loss
def test_a_batch_of_one(config: dict) -> None:
    student = knowledge(0, n=1)
    student = Knowledge(student.features.requires_grad_(), student.logits.requires_grad_())
    value = LOSSES.build(config)(student, knowledge(1, n=1), hard(1))
    value.backward()
    assert torch.isfinite(value)


@every_loss
def test_one_hot_labels_are_hard_labels(config: dict) -> None:
    loss = LOSSES.build(config)
    soft = Batch(torch.nn.functional.one_hot(hard().labels, 5).float())
    student, teacher = knowledge(0), knowledge(1)
    torch.testing.assert_close(loss(student, teacher, soft), loss(student, teacher, hard()))


@every_loss
def test_a_teacher_without_gradient_gets_none_and_the_student_does(config: dict) -> None:
    student = knowledge(0)
    student = Knowledge(student.features.requires_grad_(), student.logits.requires_grad_())
    LOSSES.build(config)(student, knowledge(1), hard()).backward()
    assert (student.features.grad is not None) != (student.logits.grad is not None)


@every_loss
def test_only_the_task_loss_does_without_a_teacher(config: dict) -> None:
    loss = LOSSES.build(config)
    if config["type"] == "CrossEntropyLoss":
        assert torch.equal(loss(knowledge(0), None, hard()), loss(knowledge(0), knowledge(1), hard()))
    else:
        with pytest.raises(ValueError, match="compares two models"):
            loss(knowledge(0), None, hard())


@every_loss
def test_shapes_that_differ_are_named(config: dict) -> None:
    if config["type"] == "CrossEntropyLoss":
        return
    wide = Knowledge(torch.zeros(4, 7), torch.zeros(4, 9))
    with pytest.raises(ValueError, match=r"\(4, 6\).*\(4, 7\)|\(4, 5\).*\(4, 9\)"):
        LOSSES.build(config)(knowledge(0), wide, hard())


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (dict(type="OFALoss", gamma=0), "gamma must be above 0, not 0"),
        (dict(type="OFALoss", modulate="none"), "'target' or 'all'"),
        (dict(type="KDLoss", temperature=-1), "temperature must be above 0"),
        (dict(type="InfoNCELoss", temperature=5.0), "from 0.01 to 1.0"),
        (dict(type="CrossEntropyLoss", label_smoothing=1.0), r"in \[0, 1\)"),
    ],
)
def test_arguments_out_of_range_are_config_errors(config: dict, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        LOSSES.build(config)


@pytest.mark.parametrize("name", ["CrossEntropyLoss", "OFALoss"])
def test_missing_labels_are_named(name: str) -> None:
    with pytest.raises(ValueError, match="needs labels"):
        LOSSES.build(dict(type=name))(knowledge(0), knowledge(1), Batch(None))
