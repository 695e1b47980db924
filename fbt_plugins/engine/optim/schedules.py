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


def scaled(schedule: Any, ratio: float) -> Any:
    """A schedule of a rate that was multiplied by ``ratio``: so is every rate that it names."""
    if not isinstance(schedule, Mapping) or not str(schedule["type"]).endswith("LR"):
        return schedule
    return {**schedule, **{key: schedule[key] * ratio for key in RATES if schedule.get(key) is not None}}
