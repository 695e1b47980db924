"""The optimizer: precision, accumulation, clipping, parameter groups and schedules."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS
from runs import Build, run
from torch import nn, optim
from torch.utils.data import DataLoader

from fbt_plugins.distill.distiller import Distiller
from fbt_plugins.engine.check import check_config
from fbt_plugins.engine.checkpoints.identity import refuse_another
from fbt_plugins.engine.optim.param_groups import MergedGroupConstructor
from fbt_plugins.engine.optim.schedules import in_iterations, scaled, unlike_training
from fbt_plugins.engine.optim.wrapper import MOST_SKIPPED, AlwaysOverflows, AutocastOptimWrapper
from fbt_plugins.engine.runner import DistillRunner
from fbt_plugins.errors import ConfigError, FBTError


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 2))


def build(model: nn.Module, **options: object) -> OptimWrapper:
    config = dict(optimizer=dict(type="AdamW", lr=0.01, weight_decay=0.1), **options)
    return MergedGroupConstructor(config)(model)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_autocast_is_on_inside_the_step_only(precision: str) -> None:
    model = net()
    wrapper = build(model, precision=precision)
    expected = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    with wrapper.optim_context(model):
        assert model[0](torch.zeros(1, 4)).dtype == expected
    assert model[0](torch.zeros(1, 4)).dtype == torch.float32


def test_fp32_steps_are_those_of_plain_torch_with_clipping() -> None:
    ours, plain = net(), net()
    wrapper = build(ours, clip_grad=dict(max_norm=0.1))
    named = [(p, 0.1 if p.ndim > 1 else 0.0) for p in plain.parameters()]
    reference = torch.optim.AdamW([dict(params=[p], weight_decay=d) for p, d in named], lr=0.01)
    for step in range(3):
        x = torch.randn(5, 4, generator=torch.Generator().manual_seed(step))
        with wrapper.optim_context(ours):
            loss = ours(x).square().sum()
        wrapper.update_params(loss)
        reference.zero_grad()
        plain(x).square().sum().backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
        reference.step()
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_scaler_is_saved_and_restored() -> None:
    first, second = build(net(), precision="fp16"), build(net(), precision="fp16")
    assert isinstance(first, AutocastOptimWrapper) and isinstance(second, AutocastOptimWrapper)
    first.optimizer.zero_grad()
    first._scaler._init_scale = 77.0
    first.update_params(next(iter(first.optimizer.param_groups[0]["params"])).sum())
    second.load_state_dict(first.state_dict())
    assert second.state_dict()["scaler"] == first.state_dict()["scaler"]


def test_an_unknown_precision_is_named() -> None:
    with pytest.raises(ConfigError, match=r"optim_wrapper.precision: 'bf61'; did you mean 'bf16'"):
        build(net(), precision="bf61")


# ---- param groups ---------------------------------------------------------------------------------------------------


def test_two_groups_hold_every_trained_parameter_once_and_no_frozen_one() -> None:
    model = net()
    model[0].requires_grad_(False)
    groups = build(model).optimizer.param_groups
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    assert all(p.ndim > 1 for p in groups[0]["params"]) and all(p.ndim <= 1 for p in groups[1]["params"])
    listed = [id(p) for g in groups for p in g["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_vectors_decay_where_the_config_says_so() -> None:
    wrapper = MergedGroupConstructor(dict(optimizer=dict(type="SGD", lr=1.0)), dict(decay_vectors=True))(net())
    assert len(wrapper.optimizer.param_groups) == 1
    with pytest.raises(ConfigError, match="no option 'decay_vector'; did you mean 'decay_vectors'"):
        MergedGroupConstructor(dict(), dict(decay_vector=True))


VIT = dict(
    type="timm",
    name="vit_tiny_patch16_224",
    img_size=32,
    patch_size=8,
    depth=4,
    embed_dim=24,
    num_heads=2,
    num_classes=10,
)


def groups_of(student: dict[str, object], **paramwise: object) -> tuple[Distiller, dict[str, tuple[float, float]]]:
    """A student, and the learning rate and decay of each of its parameters."""
    distiller = Distiller(student=student, task_loss=dict(type="CrossEntropyLoss"), image_size=(32, 32))
    config = dict(optimizer=dict(type="AdamW", lr=1.0, weight_decay=0.1))
    groups = MergedGroupConstructor(config, paramwise)(distiller).optimizer.param_groups
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(groups) == len(set(rates.values()))
    return distiller, {name.removeprefix("student.net."): rates[id(p)] for name, p in distiller.named_parameters()}


def test_what_the_network_exempts_does_not_decay() -> None:
    _, rates = groups_of(VIT)
    assert rates["pos_embed"] == rates["cls_token"] == rates["blocks.1.attn.qkv.bias"] == (1.0, 0.0)
    assert rates["blocks.1.attn.qkv.weight"] == rates["patch_embed.proj.weight"] == (1.0, 0.1)


def test_layer_decay_falls_from_the_head_to_the_stem_in_merged_groups() -> None:
    _, rates = groups_of(VIT, layer_decay=0.5)
    assert rates["head.weight"] == (1.0, 0.1)
    for block, rate in enumerate((0.0625, 0.125, 0.25, 0.5)):
        assert rates[f"blocks.{block}.attn.qkv.weight"] == (rate, 0.1)
        assert rates[f"blocks.{block}.norm1.weight"] == (rate, 0.0)
    assert rates["pos_embed"] == (0.03125, 0.0) and rates["patch_embed.proj.weight"] == (0.03125, 0.1)


def test_layer_decay_says_what_it_needs() -> None:
    with pytest.raises(ConfigError, match="layer_decay: above 0 and at most 1, not 2"):
        groups_of(VIT, layer_decay=2)
    with pytest.raises(ConfigError, match=r"layer_decay: set optim_wrapper.optimizer.lr"):
        MergedGroupConstructor(dict(optimizer=dict(type="AdamW")), dict(layer_decay=0.5))(net())


def test_a_rate_of_its_own_for_what_a_key_names() -> None:
    config = dict(optimizer=dict(type="AdamW", lr=0.01, weight_decay=0.1))
    keys = {"0.": dict(lr_mult=0.5), "0.bias": dict(lr_mult=0)}  # the longer one counts
    groups = MergedGroupConstructor(config, dict(custom_keys=keys))(model := net()).optimizer.param_groups
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert rates[id(model[0].weight)] == (0.005, 0.1) and rates[id(model[0].bias)] == (0.0, 0.0)
    assert rates[id(model[3].weight)] == (0.01, 0.1) and len(groups) == 4
    for wrong, says in (
        ({"temperature": dict(lr_mult=0.1)}, "custom_keys: 'temperature' is in no parameter's name"),
        ({"0.": dict(decay_mult=0.1)}, r"custom_keys.0.: write dict\(lr_mult=FACTOR\)"),
        ({"0.": dict(lr_mult=-1)}, r"FACTOR at least 0, not \{'lr_mult': -1\}"),
        ({"0.": 0.1}, r"write dict\(lr_mult=FACTOR\)"),
        (["0."], r"write dict\(log_temperature=dict"),
    ):
        with pytest.raises(ConfigError, match=says):
            MergedGroupConstructor(config, dict(custom_keys=wrong))(net())


def test_fp16_whose_gradient_is_never_finite_stops_and_names_a_parameter() -> None:
    model = net()
    wrapper = build(model, type="AutocastOptimWrapper", precision="fp16")
    inputs, before = torch.ones(2, 4), [p.clone() for p in model.parameters()]

    def updates(count: int, factor: float) -> None:
        for _ in range(count):
            hook = model[1].weight.register_hook(lambda gradient: gradient * factor)
            wrapper.update_params(model(inputs).square().mean())
            hook.remove()

    wrapper.initialize_count_status(model, 0, 100)
    updates(MOST_SKIPPED - 1, float("nan"))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert wrapper.only_skipped == MOST_SKIPPED - 1  # what a run that ends here is told
    updates(1, 1.0)  # one that is finite: the count begins again
    assert wrapper.only_skipped == 0
    updates(MOST_SKIPPED - 1, float("nan"))
    with pytest.raises(AlwaysOverflows, match=f"not finite in {MOST_SKIPPED} updates in a row") as error:
        updates(1, float("nan"))
    assert error.value.parameters == [model[1].weight]


# ---- schedules ------------------------------------------------------------------------------------------------------


pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `scheduler.step")


def built(lr: float, *schedules: dict, epoch_length: int = 4, **options: Any) -> tuple[OptimWrapper, list[Any]]:
    """An optimizer of two groups, and its schedules."""
    groups = [dict(params=[nn.Parameter(nn.Linear(2, 2).weight.data)], **more) for more in ({}, dict(weight_decay=0.0))]
    wrapper = OptimWrapper(optim.AdamW(groups, lr=lr, **options))
    given = dict(optimizer=wrapper, epoch_length=epoch_length)
    return wrapper, [PARAM_SCHEDULERS.build(dict(one), default_args=given) for one in schedules]


def rates(lr: float, steps: int, schedules: list[dict], epoch_length: int = 4) -> list[float]:
    """The rate of each step."""
    wrapper, own = built(lr, *schedules, epoch_length=epoch_length)
    found = []
    for _ in range(steps):
        found.append(wrapper.param_groups[0]["lr"])
        for schedule in own:
            schedule.step()
    return found


def test_a_loop_of_iterations_follows_a_schedule_of_epochs_to_its_end() -> None:
    """10 iterations of data with 4: two and a half epochs."""
    cosine = dict(type="CosineAnnealingLR", eta_min=0.0)
    (own,) = in_iterations([cosine], 10, 4)
    expected = [0.5 * (1 + math.cos(math.pi * i / 10)) for i in range(10)]
    assert rates(1.0, 10, [own]) == pytest.approx(expected)
    (steps,) = in_iterations([dict(type="MultiStepLR", milestones=[1, 2], gamma=0.1)], 10, 4)
    assert rates(1.0, 10, [steps]) == pytest.approx([1.0] * 4 + [0.1] * 4 + [0.01] * 2)
    untouched = [dict(type="ConstantLR", by_epoch=False), dict(type="ReduceOnPlateauLR", monitor="student_top1")]
    assert in_iterations(untouched, 10, 4) == untouched


def test_a_run_of_iterations_changes_its_rate(config: Build) -> None:
    settings = config()
    settings.train_cfg = dict(by_epoch=False, max_iters=6, val_interval=6)
    settings.param_scheduler = [dict(type="CosineAnnealingLR", eta_min=0.0)]
    check_config(settings)
    runner = run(settings)
    base = settings.optim_wrapper.optimizer.lr
    assert runner.param_schedulers[0].end == 6 and not runner.param_schedulers[0].by_epoch
    assert runner.optim_wrapper.param_groups[0]["lr"] < 0.1 * base


def test_the_whole_curve_of_a_scaled_rate_is_scaled() -> None:
    schedules = [
        dict(type="LinearLR", start_factor=0.1, end=2, convert_to_iter_based=True),
        dict(type="CosineAnnealingLR", begin=2, end=6, T_max=4, eta_min=0.25, convert_to_iter_based=True),
    ]
    eighth = rates(0.125, 24, [scaled(one, 0.125) for one in schedules])
    assert eighth == pytest.approx([rate / 8 for rate in rates(1.0, 24, schedules)])
    momentum = dict(type="CosineAnnealingMomentum", eta_min=0.5)
    assert scaled(momentum, 0.125) == momentum


@pytest.mark.parametrize(
    ("changes", "total", "scale"),
    [({}, 8, 0.125), ({"optim_wrapper.accumulative_counts": 8}, 64, 1.0), ({"auto_scale_lr.enable": False}, 8, 1.0)],
)
def test_a_recipes_rate_is_for_its_total_batch(
    config: Build, capsys: pytest.CaptureFixture[str], changes: dict, total: int, scale: float
) -> None:
    settings = config()
    settings.auto_scale_lr = dict(base_batch_size=64, enable=True)
    for key, value in changes.items():
        where, name = key.split(".")
        settings[where][name] = value
    settings.train_cfg.max_epochs = 1
    settings.param_scheduler[0].update(T_max=1, end=1, eta_min=1e-3)
    check_config(settings)
    runner = run(settings)
    base = settings.optim_wrapper.optimizer.lr
    assert runner.total_batch == total
    assert all(group["initial_lr"] == pytest.approx(base * scale) for group in runner.optim_wrapper.param_groups)
    assert runner.param_schedulers[0].eta_min == pytest.approx(1e-3 * scale)
    line = f"rate    {base:g} is for a total batch of 64; scaled to {base / 8:g} for 8"
    assert (line in capsys.readouterr().out) == (scale != 1)


@pytest.mark.parametrize(
    ("scale", "line"),
    [
        (dict(enable=True), "auto_scale_lr.base_batch_size: images of one update, 1 or more, not None"),
        (dict(base_batch_size=64, enabled=True), "auto_scale_lr: unknown key 'enabled'; did you mean 'enable'"),
        (dict(base_batch_size=64, enable="yes"), "auto_scale_lr.enable: True or False, not 'yes'"),
    ],
)
def test_what_is_wrong_with_a_total_batch_is_a_line(config: Build, scale: dict, line: str) -> None:
    settings = config()
    settings.auto_scale_lr = scale
    with pytest.raises(ConfigError, match=line):
        check_config(settings)


def test_how_updates_are_computed_is_not_the_checkpoints() -> None:
    """Its run may have been on another device; torch would take all switches over."""
    wrapper = AutocastOptimWrapper(optimizer=optim.AdamW([nn.Parameter(torch.zeros(2))], lr=0.1))
    state = copy.deepcopy(wrapper.state_dict())
    state["param_groups"][0] |= dict(capturable=True, fused=True, lr=0.2)
    wrapper.load_state_dict(state)
    group = wrapper.param_groups[0]
    assert (group["capturable"], group["fused"], group["lr"]) == (False, None, 0.2)


COSINE = dict(type="CosineAnnealingLR", T_max=3, end=3, convert_to_iter_based=True)


@pytest.mark.parametrize(
    ("lr", "schedule", "options", "line"),
    [
        (0.1, dict(T_max=5, end=5), {}, "param_scheduler.0.T_max in iterations: 12 in the checkpoint, 20 here"),
        (0.1, dict(eta_min=0.01), {}, "param_scheduler.0.eta_min: 0.0 in the checkpoint, 0.01 here"),
        (0.2, {}, {}, "optim_wrapper.optimizer.lr: 0.1 in the checkpoint, 0.2 here"),
        (0.1, {}, dict(weight_decay=0.5), "optim_wrapper.optimizer.weight_decay: 0.01 in the checkpoint, 0.5 here"),
        (0.1, {}, dict(betas=(0.8, 0.9)), r"betas: \[0.9, 0.999\] in the checkpoint, \[0.8, 0.9\] here"),
        (0.1, {}, dict(foreach=True), None),
    ],
)
def test_a_run_goes_on_with_its_own_schedule_and_optimizer(
    lr: float, schedule: dict, options: dict, line: str | None
) -> None:
    old, schedules = built(0.1, COSINE)
    for _ in range(5):
        schedules[0].step()
    states = [one.state_dict() for one in schedules]
    meta = dict(epoch=1, iter=5)
    checkpoint = copy.deepcopy(dict(meta=meta, optimizer=old.state_dict(), param_schedulers=states))
    new, own = built(lr, COSINE | schedule, **options)
    loader: Any = DataLoader([0])
    this: Any = SimpleNamespace(optim_wrapper=new, param_schedulers=own, seed=0, world_size=1, train_dataloader=loader)
    if line is None:
        refuse_another(this, checkpoint, "epoch_1.pth")
    else:
        with pytest.raises(FBTError, match=f"another run's .*{line}.*load_from"):
            refuse_another(this, checkpoint, "epoch_1.pth")


def test_resume_refuses_a_longer_schedule(config: Build, whole: DistillRunner) -> None:
    longer = config(**{"train_cfg.max_epochs": 5})
    longer.work_dir = whole.work_dir
    longer.param_scheduler[0].update(T_max=5, end=5)
    longer.resume = True
    runner = DistillRunner.from_cfg(longer)
    with pytest.raises(
        FBTError, match=r"epoch_3\.pth: another run's .param_scheduler.0.T_max in iterations: 12 in the"
    ):
        runner.train()


def test_data_that_make_no_batch_are_counted(config: Build) -> None:
    settings = config()
    settings.train_dataloader.pop("num_batch_per_epoch")
    settings.train_dataloader.batch_size = 6000
    line = "train_dataloader: 5,000 images make no batch of 6,000, and drop_last=True drops what is left"
    with pytest.raises(ConfigError, match=line):
        check_config(settings)
    with pytest.raises(FBTError, match=line):  # whoever does not check, or data of unknown length
        DistillRunner.from_cfg(settings)
    settings.train_dataloader.drop_last = False
    check_config(settings)


TWELVE = [dict(type="LinearLR", end=1), dict(type="CosineAnnealingLR", begin=1, T_max=11, end=12)]


@pytest.mark.parametrize(
    ("schedules", "train", "found"),
    [
        (TWELVE, dict(max_epochs=12), []),
        (TWELVE[:1], dict(max_epochs=12), []),  # a warm-up, then a constant rate
        (dict(type="MultiStepLR", milestones=[3, 6]), dict(max_epochs=9), []),
        (dict(type="ConstantLR", by_epoch=False, end=500), dict(max_epochs=9), []),  # of another unit
        (None, dict(max_epochs=9), []),
        (
            TWELVE,
            dict(max_epochs=3),
            ["1: CosineAnnealingLR lasts to epoch 12, and training to epoch 3: set 1.T_max=2"],
        ),
        (TWELVE, dict(max_epochs=20), ["1: CosineAnnealingLR lasts to epoch 12, and training to epoch 20"]),
        (
            TWELVE,
            dict(max_epochs=1),
            [
                "1: CosineAnnealingLR lasts to epoch 12, and training to epoch 1: "
                "set an earlier 1.begin, 1.end=1, 1.T_max to match"
            ],
        ),
        (dict(type="MultiStepLR", milestones=[3, 6]), dict(max_epochs=4), ["0: MultiStepLR lasts to epoch 6"]),
        (
            dict(type="CosineAnnealingLR", by_epoch=False, T_max=100),
            dict(by_epoch=False, max_iters=60),
            ["0: CosineAnnealingLR lasts to iteration 100, and training to iteration 60: set 0.T_max=60"],
        ),
    ],
)
def test_schedules_of_another_length_than_the_training_are_told(schedules: Any, train: dict, found: list[str]) -> None:
    lines = unlike_training(schedules, train)
    assert len(lines) == len(found)
    for line, start in zip(lines, found, strict=True):
        assert line.replace("end=3 param_scheduler.1.", "").replace("param_scheduler.", "").startswith(start), line


def test_a_run_says_that_its_schedule_is_of_another_length(config: Build, capsys: pytest.CaptureFixture[str]) -> None:
    one = {"train_cfg.max_epochs": 1, "default_hooks.summary": None}
    runner = run(config("short", **one, **{"train_dataloader.num_batch_per_epoch": 1}))
    shown = capsys.readouterr().out
    assert "rate    param_scheduler.0: CosineAnnealingLR lasts to epoch 3, and training to epoch 1: set" in shown
    assert "summary none: with default_hooks.summary=None the student is neither tested nor written to a file" in shown
    assert not (Path(runner.work_dir) / "student.safetensors").exists()
