"""What losses do that the checks for authors do not look at; losses of stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import CNN, CONVNEXT, DEIT, RESMLP, SWIN, VIT
from fbt_losses import cross_entropy
from torch import Tensor, nn

from fbt_plugins import LOSSES, Batch, ConfigError, Knowledge, StageSpec
from fbt_plugins.distill.distiller import Distiller
from fbt_plugins.distill.loss_contract import ModelInfo, set_up
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
    dict(type="HCDLoss"),
    dict(type="HCDLoss", stages=(2, 4), k=1, temperature=2.0, label_smoothing=0.1),
    dict(type="InfoNCELoss"),
    dict(type="InfoNCELoss", symmetric=True, learnable=False, temperature=0.2),
    dict(type="KDLoss", temperature=4.0),
    dict(type="MSELoss"),
    dict(type="OFAExitsLoss", gamma=1.3),
    dict(type="OFALoss", gamma=1.3),
    dict(type="OFALoss", gamma=1.3, modulate="all", temperature=2.0),
    dict(type="RKDLoss"),
    dict(type="RSDLoss"),
    dict(type="RSDLoss", of="logits", kappa=0.3, gather=True, expansion=1.5),
    dict(type="ScaleKDLoss"),
    dict(type="ScaleKDLoss", stages=(1, 4), frequency_stages=(1, 4), head_dim=5),
    dict(type="SlicedWassersteinLoss", stages=(2, 4), projections=16),
]
BETWEEN_STAGES = ("ATLoss", "FitNetLoss", "ScaleKDLoss", "SlicedWassersteinLoss")
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
    trained_kinds = 2 if config["type"] == "HCDLoss" else 1  # logits, and by way of its projectors stages
    assert sum(any(x.grad is not None for x in kind) for kind in kinds) == trained_kinds


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
        (dict(type="HCDLoss", k=0), "k must be at least 1"),
        (dict(type="HCDLoss", kl_weight=-1), "kl_weight must be at least 0"),
        (dict(type="ScaleKDLoss", spatial=0), "spatial must be above 0"),
        (dict(type="ScaleKDLoss", frequency_stages=(0,)), "stages must be numbers from 1"),
        (dict(type="FitNetLoss", stages=()), "stages must be numbers from 1"),
        (dict(type="FitNetLoss", stages=(0, 1)), "stages must be numbers from 1"),
        (dict(type="FitNetLoss", stages=(3, 3)), r"stages must be different numbers, not \(3, 3\)"),
        (dict(type="OFAExitsLoss", stages=3), "stages must be a list, not 3"),
        (dict(type="OFAExitsLoss", gamma=0), "gamma must be above 0"),
        (dict(type="RSDLoss", kappa=-1), "kappa must be at least 0"),
        (dict(type="RSDLoss", of="stages"), "'features' or 'logits'"),
        (dict(type="SlicedWassersteinLoss", projections=0), "projections must be at least 1"),
    ],
)
def test_arguments_out_of_range_are_config_errors(config: dict, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        LOSSES.build(config)


@pytest.mark.parametrize("name", ["CrossEntropyLoss", "DeiTLoss", "HCDLoss"])
def test_missing_labels_are_named(name: str) -> None:
    with pytest.raises(ValueError, match="needs labels"):
        build(dict(type=name))(knowledge(0), knowledge(1), Batch(None))


@pytest.mark.parametrize("name", ["DKDLoss", "OFAExitsLoss", "OFALoss"])
def test_where_there_is_no_label_the_target_class_is_the_teachers(name: str) -> None:
    options = {} if name == "DKDLoss" else {"gamma": 1.7}
    loss, student, teacher = build(dict(type=name, **options)), knowledge(0), knowledge(1)
    chosen = teacher.logits.argmax(1)
    own = torch.tensor([(int(chosen[0]) + 1) % 5, -1, (int(chosen[2]) + 2) % 5, -1])
    filled = torch.where(own < 0, chosen, own)
    value = loss(student, teacher, Batch(filled))
    assert torch.equal(loss(student, teacher, Batch(own)), value)
    soft = nn.functional.one_hot(filled, 5).float() * (own >= 0)[:, None]
    assert torch.equal(loss(student, teacher, Batch(soft)), value)
    assert not torch.allclose(loss(student, teacher, Batch(None)), value)
    assert torch.equal(loss(student, teacher, Batch(None)), loss(student, teacher, Batch(chosen)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_a_mean_over_labelled_images(smoothing: float) -> None:
    loss = build(dict(type="CrossEntropyLoss", label_smoothing=smoothing))
    logits = knowledge(0).logits.requires_grad_()
    some = Knowledge(logits, logits)
    labels = torch.tensor([2, -1, 0, -1])
    expected = nn.functional.cross_entropy(logits[[0, 2]], labels[[0, 2]], label_smoothing=smoothing)
    soft = nn.functional.one_hot(labels.clamp(min=0), 5).float() * (labels >= 0)[:, None]
    for given in (labels, soft):
        assert torch.allclose(loss(some, None, Batch(given)), expected)
        (gradient,) = torch.autograd.grad(loss(some, None, Batch(given)), logits)
        assert gradient[[0, 2]].all() and not gradient[[1, 3]].any()
        none = loss(some, None, Batch(torch.full_like(given, -1) if given.ndim == 1 else torch.zeros_like(given)))
        (gradient,) = torch.autograd.grad(none, logits)
        assert none == 0 and not gradient.any() and gradient.isfinite().all()
    whole, plain = torch.tensor([2, 1, 0, 4]), nn.functional.cross_entropy
    assert torch.equal(loss(some, None, Batch(whole)), plain(logits, whole, label_smoothing=smoothing))  # to the bit
    loss.setup((), (), {"num_samples": 9, "num_labelled": 9})
    assert loss.all_labelled
    shares = knowledge(1).logits.softmax(1)
    assert torch.equal(loss(some, None, Batch(shares)), plain(logits, shares, label_smoothing=smoothing))


def test_processes_together_descend_the_mean_over_all_labelled_images(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, logits, labels = build(dict(type="CrossEntropyLoss")), knowledge(0).logits, torch.tensor([2, -1, 0, 1])
    counts = [1, 2]  # of the two processes, each with two of the four images

    def all_reduce(total: Tensor) -> None:
        total.fill_(sum(counts))

    monkeypatch.setattr(cross_entropy, "ranks", lambda: 2)
    monkeypatch.setattr(cross_entropy.dist, "all_reduce", all_reduce)
    parts = [loss(Knowledge(logits[i : i + 2], logits[i : i + 2]), None, Batch(labels[i : i + 2])) for i in (0, 2)]
    whole = nn.functional.cross_entropy(logits, labels, ignore_index=-1)
    assert torch.allclose(sum(parts) / 2, whole)  # gradients of processes are averaged
    counts[:] = [0, 0]
    assert loss(Knowledge(logits, logits), None, Batch(torch.full((4,), -1))) == 0


# ---- stage loss -----------------------------------------------------------------------------------------------------


STAGE_LOSS_CONFIGS = [
    dict(type="ATLoss"),
    dict(type="FitNetLoss"),
    dict(type="OFAExitsLoss"),
    dict(type="HCDLoss"),
    dict(type="ScaleKDLoss", stages=(1, 2, 3, 4)),
    dict(type="SlicedWassersteinLoss", stages=(1, 2, 3, 4), projections=8),
]
stage_loss_every_loss = pytest.mark.parametrize("config", STAGE_LOSS_CONFIGS, ids=lambda c: c["type"])
Specs = list[StageSpec]


def built(config: dict, student: Specs, teacher: Specs) -> nn.Module:
    torch.manual_seed(0)
    loss = LOSSES.build(config)
    set_up(loss, ModelInfo(student, 6), ModelInfo(teacher, 8), {"num_classes": 5})
    return loss


def stage_loss_knowledge(specs: Specs, seed: int) -> Knowledge:
    """Of the student (seed 0) or the teacher (seed 1)."""
    torch.manual_seed(seed)
    stages = {i: torch.randn(spec.sizes(3)) for i, spec in enumerate(specs, 1)}
    return Knowledge(torch.randn(3, (6, 8)[seed]), torch.randn(3, 5), stages)


def value(loss: nn.Module, student: Knowledge, teacher: Knowledge) -> Tensor:
    torch.manual_seed(0)
    return loss(student, teacher, Batch(torch.tensor([0, 1, 4])))


@stage_loss_every_loss
@pytest.mark.parametrize("teacher", MODELS)
@pytest.mark.parametrize("student", MODELS)
def test_any_layout_learns_from_any_other(config: dict, student: str, teacher: str) -> None:
    loss = built(config, MODELS[student], MODELS[teacher])
    known = stage_loss_knowledge(MODELS[student], 0)
    for x in known.stages.values():
        x.requires_grad_()
    found = value(loss, known, stage_loss_knowledge(MODELS[teacher], 1))
    found.backward()
    assert found.isfinite() and found.ndim == 0
    assert all(x.grad.isfinite().all() for x in (*known.stages.values(), *loss.parameters()))
    reached = [x for n, x in known.stages.items() if x.grad.any()]
    assert len(reached) >= (3 if config["type"] == "ATLoss" else 4)  # one position alone has one attention map


@stage_loss_every_loss
def test_tokens_of_another_order_are_brought_into_row(config: dict) -> None:
    maps, tokens = MODELS["maps"], MODELS["tokens"]
    student, teacher = stage_loss_knowledge(tokens, 0), stage_loss_knowledge(maps, 1)
    expected = value(built(config, tokens, maps), student, teacher)
    order = torch.randperm(24)
    turned = [replace(spec, raster=False, order=order.argsort()) for spec in tokens]
    shuffled = Knowledge(student.features, student.logits, {n: x[:, order] for n, x in student.stages.items()})
    torch.testing.assert_close(value(built(config, turned, maps), shuffled, teacher), expected)


@stage_loss_every_loss
def test_an_order_that_nobody_knows_matters_to_all_but_sets(config: dict) -> None:
    unknown = [replace(spec, raster=False) for spec in MODELS["tokens"]]
    if config["type"] == "SlicedWassersteinLoss":
        built(config, unknown, MODELS["maps"])
    else:
        with pytest.raises(ConfigError, match=r"Loss: stage 1: .*order"):
            built(config, unknown, MODELS["maps"])


@stage_loss_every_loss
def test_its_stages_are_its_needs(config: dict) -> None:
    loss = LOSSES.build(config | dict(stages=[4, 2]))
    key = "student_stages" if config["type"] in ("HCDLoss", "OFAExitsLoss") else "stages"
    assert loss.needs[key] == (4, 2) and LOSSES.build(dict(config, stages=(3,))).needs[key] == (3,)
    more = {"HCDLoss": {"labels", "logits"}, "OFAExitsLoss": {"logits"}}
    assert loss.needs.keys() - {key} == more.get(config["type"], set())


@stage_loss_every_loss
def test_a_task_loss_it_is_not(make: Callable[..., Distiller], config: dict) -> None:
    with pytest.raises(ConfigError, match="compares two models"):
        make(task_loss=config)


@pytest.mark.parametrize(
    ("config", "student", "teacher"),
    [
        (config, *pair)
        for config, pair in zip(
            STAGE_LOSS_CONFIGS,
            [(RESMLP, CONVNEXT), (CNN, SWIN), (SWIN, VIT), (CNN, VIT), (VIT, SWIN), (DEIT, CNN)],
            strict=True,
        )
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
