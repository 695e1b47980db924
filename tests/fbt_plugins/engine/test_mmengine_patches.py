"""Each test shows mmengine without one of our patches; where it fails, that patch is no longer needed."""

from __future__ import annotations

from abc import ABCMeta
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from mmengine.runner.base_loop import BaseLoop
from runs import Build
from torch import nn

from fbt_plugins.engine.runner import DistillRunner

pytestmark = pytest.mark.filterwarnings("ignore:.*has been created:UserWarning")  # two runs share what is there


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What mmengine asks about the machine when a Runner begins, and a clock that stands still."""
    seen: list[str] = []
    monkeypatch.setattr("mmengine.runner.runner.collect_env", lambda: seen.append("versions") or {})
    monkeypatch.setattr("mmengine.runner.runner.time.time", lambda: 1e9)
    return seen


def plain(folder: Path, **config: Any) -> Runner:
    return Runner(nn.Linear(1, 1), str(folder), cfg=Config(config))


def test_runs_of_one_second_share_their_message_hub(tmp_path: Path, asked: list[str], config: Build) -> None:
    assert plain(tmp_path / "a").message_hub is plain(tmp_path / "b").message_hub
    first, second = (DistillRunner.from_cfg(config(name)) for name in "ab")
    assert first.timestamp == second.timestamp and first.message_hub is not second.message_hub


def test_every_run_asks_for_all_versions(tmp_path: Path, asked: list[str], config: Build) -> None:
    plain(tmp_path / "a")
    assert asked == ["versions"]
    DistillRunner.from_cfg(config("b"))
    assert asked == ["versions"]


def test_all_of_a_step_is_compiled(
    tmp_path: Path, asked: list[str], config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: compiled.append(function.__name__) or function)
    runner = plain(tmp_path / "a", compile=True)
    runner.model.train_step = lambda data: data
    runner._maybe_compile("train_step")
    assert compiled == ["<lambda>"] and runner.model.train_step is not None
    DistillRunner.from_cfg(config("b", compile=True))._maybe_compile("train_step")
    assert compiled[1:] and "train_step" not in compiled


def test_whether_a_loop_is_one_is_asked_of_an_abstract_class() -> None:
    assert isinstance(BaseLoop, ABCMeta) and "isinstance" in Runner.iter.fget.__code__.co_names


def test_loops_cannot_be_told_where_they_are() -> None:
    for loop in (EpochBasedTrainLoop, IterBasedTrainLoop):
        assert loop.iter.fset is None and loop.epoch.fset is None
