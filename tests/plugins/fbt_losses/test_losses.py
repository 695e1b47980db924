"""What holds for every loss, beside what the check for authors holds."""

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


def knowledge(seed: int, dtype: torch.dtype = torch.float32) -> Knowledge:
    """Of a student that gives maps (seed 0), or of a teacher that gives tokens (seed 1), about four images."""
    generator = torch.Generator().manual_seed(seed)

    def values(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, dtype=torch.float64).to(dtype)

    stages = {i: values(*spec.sizes(4)) for i, spec in enumerate(SPECS[seed], 1)}
    return Knowledge(values(4, 6), values(4, 5), stages, {name: values(4, 5) for name in EXTRA})


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


HARD = Batch(torch.arange(4), torch.arange(4))


def test_every_loss_of_the_plugin_is_here() -> None:
    assert {config["type"] for config in CONFIGS} == {
        name for name, owner in LOSSES.owners.items() if owner.name == "losses"
    }


@every_loss
def test_the_check_for_authors_passes(config: dict) -> None:
    """Precision, labels, batches of one, extreme values, gradients: see :func:`check_loss`."""
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
        return loss(Knowledge(features, logits, stages, extra), teacher, HARD)

    assert torch.autograd.gradcheck(value, tensors(student), fast_mode=True)


@every_loss
def test_one_hot_labels_are_hard_labels(config: dict) -> None:
    soft = Batch(nn.functional.one_hot(HARD.labels, 5).float(), HARD.index)
    values = [build(config)(knowledge(0), knowledge(1), batch) for batch in (soft, HARD)]
    torch.testing.assert_close(*values)


@every_loss
def test_a_loss_trains_one_kind_of_knowledge(config: dict) -> None:
    student = trained(knowledge(0))
    build(config)(student, knowledge(1), HARD).backward()
    kinds = ([student.features], [student.logits], student.stages.values(), student.extra.values())
    assert sum(any(x.grad is not None for x in kind) for kind in kinds) == 1


def test_only_the_task_loss_does_without_a_teacher() -> None:
    task = build(dict(type="CrossEntropyLoss"))
    assert torch.equal(task(knowledge(0), None, HARD), task(knowledge(0), knowledge(1), HARD))
    for config in CONFIGS:
        if config["type"] != "CrossEntropyLoss":
            with pytest.raises(ValueError, match="compares two models"):
                build(config)(knowledge(0), None, HARD)
    for name in ("CCLoss", "CRDLoss"):
        with pytest.raises(ConfigError, match="compares two models"):
            set_up(LOSSES.build(dict(type=name)), ModelInfo((), 6), None, {})


def test_shapes_that_differ_are_named() -> None:
    other = Knowledge(torch.zeros(3, 7), torch.zeros(3, 9))
    for config in CONFIGS:
        if config["type"] not in ("CrossEntropyLoss", *BETWEEN_STAGES):
            with pytest.raises(ValueError, match=r"\(4, 6\).*\(3, 7\)|\(4, 5\).*\(3, 9\)"):
                build(config)(knowledge(0), other, HARD)


@pytest.mark.parametrize("name", ["CCLoss", "DISTLoss", "DKDLoss", "KDLoss", "MSELoss", "RKDLoss"])
def test_equal_models_cost_nothing(name: str) -> None:
    """Where a loss compares what models know; the others also look at labels, at other images, or at projections."""
    for config in (dict(type=name), *(c for c in CONFIGS if c["type"] == name and "reading" not in c)):
        assert build(config)(knowledge(0), knowledge(0), HARD).item() == pytest.approx(0, abs=1e-5)


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
