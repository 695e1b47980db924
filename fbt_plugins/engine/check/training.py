"""Loops, optimizer, schedules and hooks."""

from __future__ import annotations

import inspect
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.registry import DATASETS, HOOKS, OPTIM_WRAPPERS, OPTIMIZERS, PARAM_SCHEDULERS, VISBACKENDS, VISUALIZERS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, TestLoop, ValLoop

from ...config.options import DEFAULT_HOOKS
from ...data import ImageDataset
from ...errors import ConfigError, nearest, one_line
from ..loaders import too_many_batches
from ..loops import no_batches
from ..optim.schedules import as_list, in_iterations
from .findings import Findings


def loops(findings: Findings) -> None:
    """How long is trained, and when validated and tested."""
    train = findings.config.get("train_cfg") or {}
    if not isinstance(train, Mapping):
        findings.problems.append(f"train_cfg: expected a dict, got {train!r}")
        return
    loop = EpochBasedTrainLoop if train.get("by_epoch", True) else IterBasedTrainLoop
    if train and not {"type", "by_epoch"} & train.keys():
        findings.problems.append("train_cfg: 'by_epoch' is missing: True (with max_epochs) or False (with max_iters)")
    counts, other = ("max_epochs", "max_iters") if train.get("by_epoch", True) else ("max_iters", "max_epochs")
    if train.get("type") is None and other in train:
        by_epoch = f"by_epoch={counts == 'max_epochs'}"
        findings.problems.append(
            f"train_cfg: {other} does not go with {by_epoch}; where it is inherited, replace what the _base_ says: "
            f"train_cfg = dict(_delete_=True, {by_epoch}, {counts}={train.get(counts, '...')}, ...)"
        )
        train = {key: value for key, value in train.items() if key != other}
    if train.get("type") is None:
        findings.signature(loop, train, "train_cfg", given=("self", "runner", "dataloader"), extra=("by_epoch",))
    for section, kind in (("val", ValLoop), ("test", TestLoop)):
        parts = [findings.config.get(f"{section}_{part}") for part in ("dataloader", "cfg", "evaluator")]
        if any(p is None for p in parts) and not all(p is None for p in parts):
            findings.problems.append(
                f"{section}_dataloader, {section}_cfg and {section}_evaluator: set all three or none"
            )
        elif parts[1] and "type" not in parts[1]:
            findings.signature(kind, parts[1], f"{section}_cfg", given=("self", "runner", "dataloader", "evaluator"))


def steps(findings: Findings) -> None:
    """Whether the data make a batch at all, where their number is known without them."""
    for section in ("train", "val", "test"):
        loader = findings.config.get(f"{section}_dataloader")
        if not isinstance(loader, Mapping):
            continue
        dataset = loader.get("dataset")
        if not isinstance(dataset, Mapping):
            continue
        kind = DATASETS.module_dict.get(str(dataset.get("type")))
        if inspect.isclass(kind) and issubclass(kind, ImageDataset):
            held_out = inspect.signature(kind).parameters.get("validation")
            options = {"validation": dataset.get("validation", held_out.default)} if held_out else {}
            length, batch = kind.known_length(str(dataset.get("split")), **options), loader.get("batch_size")
            processes = int(os.environ.get("WORLD_SIZE", 1)) if findings.config.get("launcher", "none") != "none" else 1
            if length is None or type(batch) is not int:
                continue
            if loader.get("drop_last") and (own := -(-length // processes)) < batch:
                findings.problems.append(no_batches(f"{section}_dataloader", own, batch, True))
            batches = loader.get("num_batch_per_epoch")
            if type(batches) is int and (asked := batches * batch * processes) > length:
                findings.problems.append(too_many_batches(f"{section}_dataloader", asked, length))


def optimizer(findings: Findings) -> None:
    """Optimizer, its wrapper and the schedules."""
    wrapper = findings.config.get("optim_wrapper")
    if not isinstance(wrapper, Mapping):
        findings.problems += [f"optim_wrapper: expected a dict, got {wrapper!r}"] if wrapper is not None else []
        return
    if isinstance(clip := wrapper.get("clip_grad"), Mapping):
        by_value = clip.get("type") == "value"
        function = torch.nn.utils.clip_grad_value_ if by_value else torch.nn.utils.clip_grad_norm_
        findings.signature(function, clip, "optim_wrapper.clip_grad", given=("parameters",), extra=("type",))
        limit = clip.get(name := "clip_value" if by_value else "max_norm")
        if isinstance(limit, int | float) and not limit > 0:  # 0 stops all learning, and less turns every step round
            findings.problems.append(f"optim_wrapper.clip_grad: {name} must be above 0, not {limit!r}")
    wrapper = {"type": "AutocastOptimWrapper", "constructor": "MergedGroupConstructor", **wrapper}
    extra = ("constructor", "paramwise_cfg", "optimizer")
    findings.typed(OPTIM_WRAPPERS, wrapper, "optim_wrapper", given=("optimizer",), extra=extra)
    if not isinstance(wrapper.get("optimizer"), Mapping):
        findings.problems.append("optim_wrapper.optimizer is missing: dict(type='AdamW', lr=0.001)")
    else:
        findings.typed(OPTIMIZERS, wrapper["optimizer"], "optim_wrapper.optimizer", given=("params",))
    schedule = findings.config.get("param_scheduler")
    given = ("optimizer", "param_name")
    findings.typed(PARAM_SCHEDULERS, schedule, "param_scheduler", given, extra=("convert_to_iter_based",))
    _monitors(findings, as_list(schedule))
    _scale(findings, wrapper.get("optimizer"))
    if not findings.problems:
        _build_optimizer(findings, wrapper, schedule)


def _monitors(findings: Findings, schedules: Sequence[Any]) -> None:
    """What schedules wait for: metrics of the validation, and milestones, of which a fraction never comes."""
    metrics = as_list(findings.config.get("val_evaluator"))
    for i, one in enumerate(schedules):
        if not isinstance(one, Mapping):
            continue
        marks = as_list(one.get("milestones"))
        if not all(type(mark) is int for mark in marks):
            findings.problems.append(f"param_scheduler.{i}: milestones must be whole numbers, not {marks!r}")
        if not getattr(PARAM_SCHEDULERS.module_dict.get(str(one.get("type"))), "need_val_args", False):
            continue
        monitor = one.get("monitor", "loss")
        if not metrics:
            findings.problems.append(f"param_scheduler.{i}: {one['type']} follows a validation; set val_dataloader")
        elif all(isinstance(m, Mapping) and m.get("type") == "TopK" for m in metrics):
            ks = [str(k) for m in metrics for k in as_list(m.get("topk", (1, 5)))]
            if not re.fullmatch(rf"\w+_top({'|'.join(ks)})", str(monitor)):
                line = f"param_scheduler.{i}: monitor {monitor!r} is no metric of the validation"
                findings.problems.append(line + nearest(monitor, [f"student_top{k}" for k in ks]))


def _scale(findings: Findings, optimizer: Any) -> None:
    """``auto_scale_lr``: mmengine reads it without a look."""
    if (scale := findings.config.get("auto_scale_lr")) is None:
        return
    if not isinstance(scale, Mapping):
        findings.problems.append(f"auto_scale_lr: dict(base_batch_size=1024, enable=True), not {scale!r}")
        return
    findings.known_keys(scale, ("base_batch_size", "enable"), "auto_scale_lr")
    base, enable = scale.get("base_batch_size"), scale.get("enable", False)
    if type(base) is not int or base < 1:
        findings.problems.append(f"auto_scale_lr.base_batch_size: images of one update, 1 or more, not {base!r}")
    if not isinstance(enable, bool):
        findings.problems.append(f"auto_scale_lr.enable: True or False, not {enable!r}")
    elif enable:
        if isinstance(optimizer, Mapping) and not isinstance(optimizer.get("lr"), int | float):
            findings.problems.append("auto_scale_lr: there is no optim_wrapper.optimizer.lr that it could scale")
        if not isinstance((findings.config.get("train_dataloader") or {}).get("batch_size"), int):
            findings.problems.append("auto_scale_lr: there is no train_dataloader.batch_size that it could scale by")


def _build_optimizer(findings: Findings, wrapper: Mapping[str, Any], schedule: Any) -> None:
    """Optimizer, schedules and wrapper of one number: they check their values, and the machine, when they are built."""
    try:
        where = "optim_wrapper.optimizer"
        given = {"params": [torch.nn.Parameter(torch.zeros(1))]}
        built = OPTIMIZERS.build(dict(wrapper["optimizer"]), default_args=given)
        schedules = as_list(schedule)
        if (train := findings.config["train_cfg"]).get("by_epoch") is False:
            schedules = in_iterations(schedules, train["max_iters"], _EPOCH)
        made: list[Any] = []
        for i, one in enumerate(schedules):
            where = f"param_scheduler.{i}"
            made.append(PARAM_SCHEDULERS.build(dict(one), default_args={"optimizer": built, "epoch_length": _EPOCH}))
        where = "param_scheduler"
        _follow(made, train.get("max_iters") or _EPOCH * train["max_epochs"])
        where, apart = "optim_wrapper", ("constructor", "paramwise_cfg", "optimizer")
        OPTIM_WRAPPERS.build({**{k: v for k, v in wrapper.items() if k not in apart}, "optimizer": built})
    except ConfigError as error:
        findings.problems += error.problems
    except Exception as error:  # torch and mmengine refuse values with any exception
        findings.problems.append(f"{where}: {one_line(error)}")


_FOLLOWED, _EPOCH = 1000, 10
"""Iterations in which schedules are tried, and how many of them are an epoch then."""


def _follow(schedules: Sequence[Any], iterations: int) -> None:
    """Steps through schedules: some divide by what they were given, which shows in the middle of a run only."""
    moving = [schedule for schedule in schedules if not getattr(schedule, "need_val_args", False)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nothing is trained here
        for done in range(1, min(iterations, _FOLLOWED)):
            for schedule in moving:
                if not schedule.by_epoch or done % _EPOCH == 0:
                    schedule.step()


def hooks(findings: Findings) -> None:
    """Those of every run, a config's own, and what draws."""
    changed = findings.config.get("default_hooks") or {}
    findings.known_keys(changed, DEFAULT_HOOKS, "default_hooks")
    for name in DEFAULT_HOOKS:
        findings.typed(HOOKS, changed.get(name), f"default_hooks.{name}", extra=("priority",))
    if isinstance(saves := changed.get("checkpoint"), Mapping) and not findings.problems:
        arguments = {k: v for k, v in saves.items() if k != "priority"}
        findings.collect("", HOOKS.build, {**DEFAULT_HOOKS["checkpoint"], **arguments})  # it checks its values
    findings.typed(HOOKS, findings.config.get("custom_hooks"), "custom_hooks", extra=("priority",))
    if visualizer := findings.config.get("visualizer"):
        findings.typed(VISUALIZERS, visualizer, "visualizer")
        if isinstance(visualizer, Mapping):
            given = ("save_dir",)
            findings.typed(VISBACKENDS, visualizer.get("vis_backends"), "visualizer.vis_backends", given)
