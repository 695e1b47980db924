"""Each test shows mmengine without one of our patches; where it fails, that patch is no longer needed."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config

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
