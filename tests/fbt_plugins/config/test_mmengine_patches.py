"""Each test shows mmengine without one of our patches; where it fails, that patch is no longer needed."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.fileio import YamlHandler
from mmengine.logging import MMLogger

from fbt_plugins.config.loading import load_config
from fbt_plugins.config.mmengine_patches import is_lazy, merging_our_way
from fbt_plugins.errors import ConfigError


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
