"""Each test shows mmengine without one of our patches; where it fails, that patch is no longer needed.

Then: Each test shows mmengine without one of our patches; where it fails, that patch is no longer needed.
"""

from __future__ import annotations

import logging
from abc import ABCMeta
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import YamlHandler
from mmengine.logging import MMLogger
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from mmengine.runner.base_loop import BaseLoop
from runs import Build
from torch import nn

from fbt_plugins.config.loading import load_config
from fbt_plugins.config.mmengine_patches import is_lazy, merging_our_way
from fbt_plugins.engine.runner import DistillRunner
from fbt_plugins.errors import ConfigError

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


# ---- mmengine patches -----------------------------------------------------------------------------------------------


def test_mmengine_lets_a_new_type_inherit_the_old_ones_arguments(tmp_path: Path) -> None:
    (tmp_path / "base.py").write_text("loss = dict(type='OFALoss', gamma=1.2)\n")
    (tmp_path / "child.py").write_text("_base_ = 'base.py'\nloss = dict(type='KDLoss')\n")
    assert Config.fromfile(tmp_path / "child.py").loss == dict(type="KDLoss", gamma=1.2)
    with merging_our_way():
        assert Config.fromfile(tmp_path / "child.py").loss == dict(type="KDLoss")
    assert Config.fromfile(tmp_path / "child.py").loss == dict(type="KDLoss", gamma=1.2)  # mmengine's own again


def test_mmengine_reads_a_file_with_imports_in_another_way(tmp_path: Path) -> None:
    (tmp_path / "imports.py").write_text("import torch\nkind = torch.nn.Linear\n")
    (tmp_path / "plain.py").write_text("kind = 'Linear'\n")
    assert is_lazy(tmp_path / "imports.py") and not is_lazy(tmp_path / "plain.py")
    assert "torch" in Config.fromfile(tmp_path / "imports.py")  # a key that nobody wrote


def test_mmengine_tells_which_environment_variables_a_file_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[logging.LogRecord] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", seen.append)
    monkeypatch.setenv("FBT_TEST_ROOT", "elsewhere")
    (tmp_path / "mine.py").write_text('train_dataloader = dict(dataset=dict(root="{{$FBT_TEST_ROOT:data}}"))\n')
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    try:
        Config.fromfile(tmp_path / "mine.py")
        assert [record.levelname for record in seen if "Using env variable" in record.getMessage()] == ["INFO"]
        seen.clear()
        assert load_config(tmp_path / "mine.py").train_dataloader.dataset.root == "elsewhere"
        assert not seen
    finally:
        logger.removeHandler(handler)


@pytest.mark.parametrize("tag", ["object/apply:os.mkdir", "object/new:os.mkdir", "object/apply:pathlib.Path.mkdir"])
def test_mmengine_executes_what_a_yaml_file_names(tag: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "base.yaml").write_text(f"evil: !!python/{tag} ['{marker}']\n")
    (tmp_path / "child.yml").write_text("_base_: base.yaml\n")
    for name in ("base.yaml", "child.yml"):
        with pytest.raises(ConfigError, match=f"{name}: it or its _base_ is no YAML of plain values") as caught:
            load_config(tmp_path / name)
        assert len(caught.value.problems) == 1 and "\n" not in str(caught.value)
    assert not marker.exists()
    with suppress(Exception):
        YamlHandler().load_from_path(str(tmp_path / "base.yaml"), mode="r")
    assert marker.exists() or "Path" in tag


def test_tuples_that_mmengine_writes_to_yaml_are_read(tmp_path: Path) -> None:
    config = Config(dict(model=dict(depths=(1, 2), names=["a"])))
    config.dump(tmp_path / "dumped.yaml")
    assert Config.fromfile(tmp_path / "dumped.yaml").model == dict(depths=(1, 2), names=["a"])
