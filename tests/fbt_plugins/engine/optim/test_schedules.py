"""Schedules and rates: what a loop counts, what a recipe's total batch does, and what a resumed run may change."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS
from runs import Build, run
from torch import nn, optim

from fbt_plugins.engine.check import check_config
from fbt_plugins.engine.optim.schedules import in_iterations, refuse_others, scaled
from fbt_plugins.engine.runner import DistillRunner
from fbt_plugins.errors import ConfigError, FBTError

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
    checkpoint = copy.deepcopy(dict(optimizer=old.state_dict(), param_schedulers=states))
    new, own = built(lr, COSINE | schedule, **options)
    if line is None:
        refuse_others(new, own, checkpoint, "epoch_1.pth")
    else:
        with pytest.raises(FBTError, match=f"another run's .*{line}.*load_from"):
            refuse_others(new, own, checkpoint, "epoch_1.pth")


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
