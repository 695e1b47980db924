"""Each test shows mmengine without one of our patches; where it fails, that patch is no longer needed."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.logging import MMLogger

from fbt_plugins.config.loading import load_config
from fbt_plugins.config.mmengine_patches import is_lazy, merging_our_way


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
