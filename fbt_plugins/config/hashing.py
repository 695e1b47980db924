"""A fingerprint of everything in a config that a result may depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from .options import OPTIONS

_OF_THE_STUDENT = frozenset(
    {
        *("train_dataloader", "val_dataloader", "test_dataloader", "train_cfg", "param_scheduler", "optim_wrapper"),
        *("data_preprocessor", "auto_scale_lr", "ema", "channels_last"),
    }
)


def config_hash(config: Mapping[str, Any]) -> str:
    """Of everything in a run's config that its result may depend on, but the seed; not of where the data lie."""
    values = {key: value for key, value in config.items() if key not in OPTIONS or OPTIONS[key].affects_results}
    for key in ("train_dataloader", "val_dataloader", "test_dataloader"):
        if loader := values.get(key):
            values[key] = {**loader, "dataset": {k: v for k, v in loader["dataset"].items() if k != "root"}}
    others = {key: value for key, value in (config.get("randomness") or {}).items() if key != "seed"}
    text = json.dumps({**values, "randomness": others}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def training_hash(config: Mapping[str, Any]) -> str:
    """Of everything that the training of a run's student without a teacher would depend on, but the seed.

    Two runs with one hash differ in nothing but what they are taught, so their students can be compared.
    """
    values = {key: value for key, value in config.items() if key in _OF_THE_STUDENT}
    model, cache = config["model"], config.get("teacher_cache") or {}
    task = {key: value for key, value in (model.get("task_loss") or {}).items() if key != "weight"}
    values["model"] = {"student": model.get("student"), "task_loss": task}
    values["views"] = cache and [cache.get("views"), cache.get("seed")]
    return config_hash({**values, "randomness": config.get("randomness")})
