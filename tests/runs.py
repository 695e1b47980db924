"""Whole runs at miniature scale, for the tests of the engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CONVNEXT, RESMLP
from mmengine.config import Config

from fbt_plugins.config.loading import load_config
from fbt_plugins.engine.checkpoints.files import read_checkpoint
from fbt_plugins.engine.runner import DistillRunner
from fbt_plugins.files import write_atomic

ROOT = Path(__file__).parents[1]
BASES = [str(ROOT / "configs" / "_base_" / name) for name in ("fbt.py", "fashion_mnist_mini.py", "adamw_cosine.py")]
TINY = f"""
_base_ = {BASES}
model = dict(student={RESMLP}, teacher={CONVNEXT})
train_dataloader = dict(batch_size=8, num_batch_per_epoch=4)
val_dataloader = dict(num_batch_per_epoch=1, batch_size=20)
test_dataloader = dict(num_batch_per_epoch=1, batch_size=20)
train_cfg = dict(by_epoch=True, max_epochs=3)
param_scheduler = [dict(type="CosineAnnealingLR", T_max=3, end=3, convert_to_iter_based=True)]
randomness = dict(seed=3)
device = "cpu"
default_hooks = dict(progress=dict(interval=2, curves=False))
"""


Build = Callable[..., Config]


def builder(folder: Path) -> Build:
    """Builds configs of runs in folders of their own below a folder."""

    def build(name: str = "run", **options: Any) -> Config:
        write_atomic(folder / "tiny.py", TINY)  # several processes may do this at once
        loaded = load_config(folder / "tiny.py", options)
        loaded.work_dir = str(folder / name)
        return loaded

    return build


def run(config: Config) -> DistillRunner:
    """A whole run."""
    runner = DistillRunner.from_cfg(config)
    runner.train()
    return runner


class Killed(Exception):
    """Stands for a SIGKILL: nothing of ours gets to run after it."""


def run_until(config: Config, iteration: int) -> DistillRunner:
    """A run that dies at the beginning of an iteration, counted from 0."""
    runner = DistillRunner.from_cfg(config)
    step = runner.model.train_step

    def dying(*args: Any, **kwargs: Any) -> Any:
        if runner.iter == iteration:
            raise Killed
        return step(*args, **kwargs)

    runner.model.train_step = dying
    with pytest.raises(Killed):
        runner.train()
    return runner


def curve(runner: DistillRunner) -> list[dict[str, float]]:
    """All records of metrics.jsonl but the speed."""
    return records(Path(runner.work_dir))


def records(folder: Path) -> list[dict[str, float]]:
    """The same, of a run in a folder."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if "second" not in k} for line in lines]


def assert_same(a: DistillRunner, b: DistillRunner, checkpoint: str) -> None:
    """Two runs ended with the same bits: weights, curve, and all that their last checkpoints hold."""
    assert a.iter == b.iter and a.epoch == b.epoch
    assert curve(a) == curve(b)
    first, second = (read_checkpoint(Path(r.work_dir) / checkpoint) for r in (a, b))
    for skipped in ("meta", "message_hub"):
        first.pop(skipped), second.pop(skipped)
    assert_equal(first, second, "checkpoint")
    for name, value in a.model.state_dict().items():
        assert torch.equal(value, b.model.state_dict()[name]), name


def assert_equal(a: Any, b: Any, where: str) -> None:
    """Trees of tensors and plain values with the same bits."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}.{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where
