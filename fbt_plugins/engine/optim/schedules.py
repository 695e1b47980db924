"""Schedules: what they count, and how they follow a scaled rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.registry import PARAM_SCHEDULERS

from ...errors import ConfigError

RATES = ("eta_min", "eta_max", "min_value")
"""Arguments of schedules that are learning rates themselves; all others are factors, or count something."""

Schedule = Mapping[str, Any]


def as_list(schedules: Any) -> list[Any]:
    """A config's ``param_scheduler`` as a list: it may be one schedule, several, or None."""
    if schedules is None:
        return []
    return list(schedules) if isinstance(schedules, Sequence) else [schedules]


def in_iterations(schedules: Sequence[Any], max_iters: int, epoch_length: int) -> list[Any]:
    """Schedules for a loop that counts iterations: those that count epochs are converted, and end with the training.

    Such a loop has no ends of epochs at which they could step.

    Args:
        schedules: configs; those that a validation's metrics drive stay as they are.
        max_iters: of the training.
        epoch_length: iterations that the data have.

    Raises:
        ConfigError: for a schedule that can count epochs only.
    """
    converted = []
    for i, schedule in enumerate(schedules):
        if isinstance(schedule, Mapping) and schedule.get("by_epoch", True):
            kind: Any = PARAM_SCHEDULERS.get(schedule["type"])
            if not getattr(kind, "need_val_args", False):
                if not hasattr(kind, "build_iter_from_epoch"):
                    raise ConfigError(
                        f"param_scheduler.{i}: {schedule['type']} counts epochs and cannot be converted; "
                        "train_cfg.by_epoch=False wants one with by_epoch=False"
                    )
                end = (max_iters + 0.5) / epoch_length  # mmengine rounds iterations down
                schedule = {"end": end, **schedule, "convert_to_iter_based": True}
        converted.append(schedule)
    return converted


_TO_AN_END = ("Cosine", "Poly", "OneCycle")
"""What names of schedules begin with that are meant to reach their end as the training does."""


def unlike_training(schedules: Any, train: Any) -> list[str]:
    """Schedules that training cuts off, or that it outlasts; a changed ``max_epochs`` alone does not move them.

    Args:
        schedules: a config's ``param_scheduler``.
        train: its ``train_cfg``.

    Returns:
        A line for each, with what to set.
    """
    if not isinstance(train, Mapping):
        return []
    by_epoch = train.get("by_epoch", True)
    total, unit = train.get("max_epochs" if by_epoch else "max_iters"), "epoch" if by_epoch else "iteration"
    lines = []
    for i, one in enumerate(as_list(schedules)):
        if not isinstance(one, Mapping) or one.get("by_epoch", True) != by_epoch or not isinstance(total, int):
            continue
        begin, kind, place = one.get("begin", 0), str(one.get("type")), f"param_scheduler.{i}"
        ends = [one.get("end"), begin + one["T_max"] if one.get("T_max") else None, one.get("total_steps")]
        last = max([end for end in (*ends, *as_list(one.get("milestones"))) if isinstance(end, int)], default=total)
        if last <= total and not (last < total and kind.startswith(_TO_AN_END)):
            continue
        wanted = {"end": total, "T_max": total - begin, "total_steps": total}
        options = " ".join(f"{place}.{key}={value}" for key, value in wanted.items() if key in one and value > 0)
        if begin >= total:
            to_match = [f"{place}.{key}={total}" for key in ("end", "total_steps") if key in one]
            to_match += [f"{place}.T_max to match"] if "T_max" in one else []
            options = ", ".join([f"an earlier {place}.begin", *to_match])
        elif one.get("milestones"):
            options = f"earlier {place}.milestones"
        lines.append(f"{place}: {kind} lasts to {unit} {last}, and training to {unit} {total}: set {options}")
    return lines


def scaled(schedule: Any, ratio: float) -> Any:
    """A schedule of a rate that was multiplied by ``ratio``: so is every rate that it names."""
    if not isinstance(schedule, Mapping) or not str(schedule["type"]).endswith("LR"):
        return schedule
    return {**schedule, **{key: schedule[key] * ratio for key in RATES if schedule.get(key) is not None}}
