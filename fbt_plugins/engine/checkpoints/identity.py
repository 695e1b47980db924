"""Whose a checkpoint is: what it says about its run, and what a run that goes on from it must have in common with that.

A run takes up its own checkpoints only: with another batch size, data set, optimizer or schedule it would end neither
as the old run nor as a new one.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim.scheduler.param_scheduler import _ParamScheduler
from torch import Tensor

from ...errors import FBTError, is_number, one_line, short
from ..optim.wrapper import SWITCHES
from ..training_run import TrainingRun

_NAMES = {
    "seed": "seed",
    "world_size": "processes",
    "epoch_length": "iterations per epoch",
    "batch_size": "batch size",
    "data": "training images or labels",
    "optimizer": "optimizer",
}
_POSITION = ("optimizer", "last_step", "verbose")
_OF_A_PARAMETER = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")
"""What an optimizer keeps of each parameter in that parameter's own shape."""


def identity(runner: TrainingRun) -> dict[str, Any]:
    """What a checkpoint says about its run, for :func:`refuse_another`; what cannot be told is left out."""
    loader = runner.train_dataloader
    found = {
        "world_size": runner.world_size,
        "epoch_length": len(loader),
        "batch_size": getattr(loader, "batch_size", None),
        "data": _glance(loader.dataset),
        "optimizer": type(getattr(runner.optim_wrapper, "optimizer", None)).__name__,
    }
    return {key: value for key, value in found.items() if value is not None}


def _glance(dataset: Any) -> str | None:
    """What tells a data set from others without reading all of it; None for one that has no such method."""
    fingerprint = getattr(dataset, "fingerprint", None)
    try:
        return None if fingerprint is None else fingerprint(thorough=False)
    except (FBTError, TypeError, OSError):  # a class of a user's own, or an image is gone
        return None


def refuse_another(runner: TrainingRun, checkpoint: Mapping[str, Any], filename: str) -> None:
    """Refuses another run's checkpoint, and one that was changed by hand.

    Loading one with other arguments of the optimizer, or other schedules, would put the old ones back, whatever the
    config says now.

    Of a checkpoint from before something was stored in it, the rest is compared.

    Raises:
        FBTError: with the first thing that differs, before anything of the run is changed.
    """
    meta, here = checkpoint["meta"], {"seed": runner.seed, **identity(runner)}
    for key, value in here.items():
        if meta.get(key, value) != value:
            both = "" if key == "data" else f": {meta[key]} in the checkpoint, {value} here"
            raise _another(filename, f"{_NAMES[key]}{both or ' differ'}")
    for key in ("epoch", "iter"):
        if type(meta.get(key)) is not int or meta[key] < 0:
            raise FBTError(f"--resume {filename}: it does not say at which {key} it was written")
    if "optimizer" not in checkpoint:
        raise FBTError(f"--resume {filename}: it has weights but no optimizer; take an epoch_*.pth or iter_*.pth")
    schedules, own = checkpoint.get("param_schedulers") or (), runner.param_schedulers or ()
    if not isinstance(schedules, list | tuple | dict):
        raise FBTError(f"--resume {filename}: its schedules are not whole")
    if not isinstance(own, Mapping) and len(schedules) != len(own):
        raise _another(filename, f"schedules: {len(schedules)} in the checkpoint, {len(own)} here")
    optimizer = getattr(runner.optim_wrapper, "optimizer", None)
    if optimizer is None:
        return
    with taking_up(filename, "optimizer"):
        _compare(optimizer, runner.optim_wrapper, checkpoint["optimizer"], filename)
    with taking_up(filename, "schedules"):
        found = _first_difference(optimizer, own, checkpoint)
    if found is not None:
        what, before, now = found
        raise _another(filename, f"{what}: {before} in the checkpoint, {now} here")


def _compare(optimizer: Any, wrapper: Any, stored: Mapping[str, Any], filename: str) -> None:
    """Refuses the state of another optimizer, or of other parameters."""
    groups, own = stored["param_groups"], optimizer.param_groups
    counts, own_counts = ([len(group["params"]) for group in some] for some in (groups, own))
    if counts != own_counts:
        what = f"groups of parameters: {_sizes(counts)} in the checkpoint, {_sizes(own_counts)} here"
        raise _another(filename, what)
    pairs = list(zip(groups, own, strict=True))
    if (base := getattr(wrapper, "base_param_settings", None)) is not None:  # a group of no parameter, for mmengine
        pairs.append((stored["base_param_settings"], base))
    for group, mine in pairs:
        if foreign := sorted(map(str, group.keys() - mine.keys())):
            raise _another(filename, f"optimizer: the checkpoint's has {foreign[0]!r}, {type(optimizer).__name__} not")
        for key, value in mine.items():  # switches may be missing: torch adds some with each release
            given = group.get(key)
            alike = isinstance(given, list | tuple) and isinstance(value, tuple) and len(given) == len(value)
            if (_is_number(value) and not _is_number(given)) or (isinstance(value, tuple) and not alike):
                raise FBTError(f"--resume {filename}: its optimizer's {key} is {short(given)}, not like {value}")
    places = [place for group in groups for place in group["params"]]
    states = [stored["state"].get(place) for place in places]
    parameters = [parameter for group in own for parameter in group["params"]]
    if len({frozenset(state) for state in states if state}) > 1:
        raise FBTError(f"--resume {filename}: its optimizer's state is not whole")
    for state, parameter in zip(states, parameters, strict=True):
        for name, value in (state or {}).items():
            unused = name == "momentum_buffer" and value is None
            if (name == "step" and not _is_number(value)) or (
                name in _OF_A_PARAMETER and not unused and not _is_like(value, parameter)
            ):
                raise FBTError(f"--resume {filename}: its optimizer's {name} does not fit a parameter of this model")


def _first_difference(
    optimizer: Any, schedules: Sequence[_ParamScheduler], checkpoint: Mapping[str, Any]
) -> tuple[str, Any, Any] | None:
    for i, (own, state) in enumerate(zip(schedules, checkpoint.get("param_schedulers", ()), strict=False)):
        unit = "" if own.by_epoch else " in iterations"
        arguments = {name for cls in type(own).__mro__ for name in inspect.signature(cls).parameters}
        for name in sorted(arguments.difference(_POSITION) & state.keys() & vars(own).keys()):
            if vars(own)[name] != state[name]:
                counts = unit if name in ("begin", "end", "T_max", "step_size", "milestones", "total_steps") else ""
                return f"param_scheduler.{i}.{name}{counts}", _plain(state[name]), _plain(vars(own)[name])
        if own.base_values != state.get("base_values", own.base_values):
            rates = zip(state["base_values"], own.base_values, strict=False)
            before, now = next((a, b) for a, b in rates if a != b)
            return f"optim_wrapper.optimizer.{own.param_name}", before, now
    moving = {"betas" if own.param_name == "momentum" else own.param_name for own in schedules}
    moving |= {own.param_name for own in schedules} | {f"initial_{own.param_name}" for own in schedules}
    saved = checkpoint.get("optimizer", {}).get("param_groups", ())
    for group, old in zip(optimizer.param_groups, saved, strict=False):
        for name in group.keys() & old.keys() - moving - {"params", *SWITCHES}:
            if _plain(group[name]) != _plain(old[name]):
                return f"optim_wrapper.optimizer.{name}", _plain(old[name]), _plain(group[name])
    return None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):  # milestones, as mmengine counts them
        return sorted(value)
    return list(value) if isinstance(value, tuple) else value


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor) and value.numel() == 1 and value.dtype is not torch.bool:
        value = value.item()
    return is_number(value) and value >= 0


def _is_like(value: Any, parameter: Tensor) -> bool:
    plain = isinstance(value, Tensor) and value.layout is torch.strided
    return plain and value.is_floating_point() and value.shape == parameter.shape


def _sizes(counts: list[int]) -> str:
    return " + ".join(map(str, counts)) or "none"


def _another(filename: str, what: str) -> FBTError:
    return FBTError(f"--resume {filename}: another run's ({what}); for its weights set load_from")


@contextmanager
def taking_up(filename: str, what: str) -> Iterator[None]:
    """Says which part of a checkpoint cannot be taken up; torch and mmengine raise any exception there.

    Raises:
        FBTError: in one line.
    """
    try:
        yield
    except FBTError:
        raise
    except Exception as error:
        text = one_line(error)[:200]
        raise FBTError(
            f"--resume {filename}: its {what} cannot be taken up ({text}); for its weights set load_from"
        ) from error
