"""What holds for every loss: precision, labels, batches of one, gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fbt_plugins import LOSSES, Batch, Knowledge
from fbt_plugins.distill.loss_contract import ModelInfo, set_up
from fbt_plugins.errors import ConfigError
from fbt_plugins.testing.checks import EXTRA, MODELS, check_loss

CONFIGS = [
    dict(type="ATLoss"),
    dict(type="BKDLoss"),
    dict(type="CCLoss"),
    dict(type="CCLoss", reading="difference", dim=3),
    dict(type="CRDLoss", dim=3),
    dict(type="CRDLoss", dim=3, negatives=4),
    dict(type="CrossEntropyLoss", label_smoothing=0.1),
    dict(type="DeiTLoss"),
    dict(type="DeiTLoss", distillation_type="soft", alpha=0.1, tau=3.0, label_smoothing=0.1),
    dict(type="DISTLoss", beta=0.5, temperature=2.0),
    dict(type="DKDLoss", temperature=2.0),
    dict(type="FitNetLoss"),
    dict(type="InfoNCELoss"),
    dict(type="InfoNCELoss", symmetric=True, learnable=False, temperature=0.2),
    dict(type="KDLoss", temperature=4.0),
    dict(type="MSELoss"),
    dict(type="OFAExitsLoss", gamma=1.3),
    dict(type="OFALoss", gamma=1.3),
    dict(type="OFALoss", gamma=1.3, modulate="all", temperature=2.0),
    dict(type="RKDLoss"),
    dict(type="SlicedWassersteinLoss", stages=(2, 4), projections=16),
]
BETWEEN_STAGES = ("ATLoss", "FitNetLoss", "SlicedWassersteinLoss")
every_loss = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: " ".join(map(str, c.values())))


SPECS = {0: MODELS["maps"], 1: MODELS["tokens and two prefix tokens"]}


def knowledge(seed: int, n: int = 4, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Knowledge:
    """Of a student that gives maps (seed 0), or of a teacher that gives tokens (seed 1)."""
    generator = torch.Generator().manual_seed(seed)

    def values(*sizes: int) -> Tensor:
        return (torch.randn(sizes, generator=generator, dtype=torch.float64) * scale).to(dtype)

    stages = {i: values(*spec.sizes(n)) for i, spec in enumerate(SPECS[seed], 1)}
    return Knowledge(values(n, 6), values(n, 5), stages, {name: values(n, 5) for name in EXTRA})


def trained(known: Knowledge) -> Knowledge:
    for tensor in tensors(known):
        tensor.requires_grad_()
    return known


def tensors(known: Knowledge) -> list[Tensor]:
    return [known.features, known.logits, *known.stages.values(), *known.extra.values()]


def build(config: dict) -> nn.Module:
    """A loss that is set up, and whose next draws are always the same."""
    torch.manual_seed(0)
    loss = LOSSES.build(config)
    set_up(loss, ModelInfo(SPECS[0], 6), ModelInfo(SPECS[1], 6), {"num_classes": 5, "num_samples": 8})
    torch.manual_seed(0)
    return loss


def hard(n: int = 4) -> Batch:
    return Batch(torch.arange(n) % 5, torch.arange(n))


@every_loss
def test_the_check_for_authors_passes(config: dict) -> None:
    check_loss(config, task=config["type"] == "CrossEntropyLoss")


@every_loss
def test_gradients_are_right(config: dict) -> None:
    loss = build(config).double().eval()  # banks stay as they are
    teacher, student = knowledge(1, dtype=torch.float64), trained(knowledge(0, dtype=torch.float64))

    def value(*inputs: Tensor) -> Tensor:
        features, logits, *others = inputs
        stages = dict(zip(student.stages, others, strict=False))
        extra = dict(zip(EXTRA, others[len(stages) :], strict=True))
        torch.manual_seed(0)
        return loss(Knowledge(features, logits, stages, extra), teacher, hard())

    assert torch.autograd.gradcheck(value, tensors(student), fast_mode=True)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(config: dict, dtype: torch.dtype) -> None:
    student, teacher = knowledge(0, dtype=dtype), knowledge(1, dtype=dtype)
    loss = build(config)
    with torch.autocast("cpu", dtype):
        value = loss(student, teacher, hard())
    for known in (student, teacher):
        for part in (known.stages, known.extra):
            part.update({key: x.float() for key, x in part.items()})  # type: ignore[attr-defined]
    exact = build(config)(
        *(Knowledge(k.features.float(), k.logits.float(), k.stages, k.extra) for k in (student, teacher)), hard()
    )
    assert value.dtype == torch.float32
    rtol = 0.01 if getattr(loss, "autocast", False) else 0
    torch.testing.assert_close(value, exact, rtol=rtol, atol=0)


@every_loss
def test_float64_stays_float64(config: dict) -> None:
    value = build(config).double()(knowledge(0, dtype=torch.float64), knowledge(1, dtype=torch.float64), hard())
    assert value.dtype == torch.float64


@every_loss
@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_extreme_inputs_give_finite_losses_and_gradients(config: dict, scale: float) -> None:
    loss, student = build(config), trained(knowledge(0, scale=scale))
    value = loss(student, knowledge(1, scale=scale), hard())
    value.backward()
    assert value.ndim == 0 and torch.isfinite(value)
    for part in (*tensors(student), *loss.parameters()):
        assert part.grad is None or torch.isfinite(part.grad).all()


@every_loss
def test_a_batch_of_one(config: dict) -> None:
    value = build(config)(trained(knowledge(0, n=1)), knowledge(1, n=1), hard(1))
    value.backward()
    assert torch.isfinite(value)


@every_loss
def test_one_hot_labels_are_hard_labels(config: dict) -> None:
    soft = Batch(torch.nn.functional.one_hot(hard().labels, 5).float(), hard().index)
    student, teacher = knowledge(0), knowledge(1)
    torch.testing.assert_close(build(config)(student, teacher, soft), build(config)(student, teacher, hard()))


@every_loss
def test_a_loss_trains_one_kind_of_knowledge_and_every_parameter_of_its_own(config: dict) -> None:
    loss, student = build(config), trained(knowledge(0))
    loss(student, knowledge(1), hard()).backward()
    kinds = ([student.features], [student.logits], student.stages.values(), student.extra.values())
    assert sum(any(x.grad is not None for x in kind) for kind in kinds) == 1
    assert all(p.grad is not None for p in loss.parameters())


@every_loss
def test_only_the_task_loss_does_without_a_teacher(config: dict) -> None:
    loss = build(config)
    if config["type"] == "CrossEntropyLoss":
        assert torch.equal(loss(knowledge(0), None, hard()), loss(knowledge(0), knowledge(1), hard()))
    else:
        with pytest.raises(ValueError, match="compares two models"):
            loss(knowledge(0), None, hard())


@every_loss
def test_shapes_that_differ_are_named(config: dict) -> None:
    if config["type"] in ("CrossEntropyLoss", *BETWEEN_STAGES):
        return
    other = Knowledge(torch.zeros(3, 7), torch.zeros(3, 9))
    with pytest.raises(ValueError, match=r"\(4, 6\).*\(3, 7\)|\(4, 5\).*\(3, 9\)"):
        build(config)(knowledge(0), other, hard())


@every_loss
def test_equal_models_cost_nothing(config: dict) -> None:
    """Where a loss compares what models know; the others also look at labels, at other images, or at projections."""
    if config["type"] in ("DISTLoss", "DKDLoss", "KDLoss", "MSELoss", "RKDLoss") or config == dict(type="CCLoss"):
        assert build(config)(knowledge(0), knowledge(0), hard()).item() == pytest.approx(0, abs=1e-5)


@every_loss
def test_those_that_compare_two_models_cannot_be_set_up_as_task_losses(config: dict) -> None:
    if config["type"] in ("CCLoss", "CRDLoss"):
        with pytest.raises(ConfigError, match="compares two models"):
            set_up(LOSSES.build(config), ModelInfo((), 6), None, {})


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (dict(type="OFALoss", gamma=0), "gamma must be above 0, not 0"),
        (dict(type="OFALoss", modulate="none"), "'target' or 'all'"),
        (dict(type="KDLoss", temperature=-1), "temperature must be above 0"),
        (dict(type="KDLoss", temperature=float("inf")), "temperature must be finite, not inf"),
        (dict(type="DISTLoss", beta=float("inf")), "beta must be finite, not inf"),
        (dict(type="InfoNCELoss", temperature=5.0), "from 0.01 to 1.0"),
        (dict(type="CrossEntropyLoss", label_smoothing=1.0), r"in \[0, 1\)"),
        (dict(type="DKDLoss", alpha=-1), "alpha must be at least 0, not -1"),
        (dict(type="DKDLoss", temperature=0), "temperature must be above 0"),
        (dict(type="DISTLoss", gamma=-0.5), "gamma must be at least 0"),
        (dict(type="RKDLoss", angle_weight=-1), "angle_weight must be at least 0"),
        (dict(type="CCLoss", reading="both"), "'kernel' or 'difference'"),
        (dict(type="CCLoss", order=0), "order must be above 0"),
        (dict(type="CRDLoss", momentum=1.0), r"momentum must be in \[0, 1\)"),
        (dict(type="CRDLoss", negatives=0), "negatives must be above 0"),
        (dict(type="ATLoss", beta=0), "beta must be above 0"),
        (dict(type="ATLoss", p=0.5), "p must be at least 1"),
        (dict(type="DeiTLoss", alpha=1.0), "alpha must be between 0 and 1"),
        (dict(type="DeiTLoss", tau=0), "tau must be above 0"),
        (dict(type="DeiTLoss", distillation_type="none"), "'hard' or 'soft'"),
        (dict(type="FitNetLoss", stages=()), "stages must be numbers from 1"),
        (dict(type="FitNetLoss", stages=(0, 1)), "stages must be numbers from 1"),
        (dict(type="OFAExitsLoss", stages=3), "stages must be a list, not 3"),
        (dict(type="OFAExitsLoss", gamma=0), "gamma must be above 0"),
        (dict(type="SlicedWassersteinLoss", projections=0), "projections must be at least 1"),
    ],
)
def test_arguments_out_of_range_are_config_errors(config: dict, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        LOSSES.build(config)


@pytest.mark.parametrize("name", ["CrossEntropyLoss", "DKDLoss", "DeiTLoss", "OFAExitsLoss", "OFALoss"])
def test_missing_labels_are_named(name: str) -> None:
    with pytest.raises(ValueError, match="needs labels"):
        build(dict(type=name))(knowledge(0), knowledge(1), Batch(None))
