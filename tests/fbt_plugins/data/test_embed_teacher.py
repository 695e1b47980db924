import json
from pathlib import Path

import pytest
import torch
from conftest import RESMLP

from fbt_plugins import ARCHITECTURES
from fbt_plugins.data.embed_teacher import embed
from fbt_plugins.engine.checkpoints import save_student
from fbt_plugins.errors import FBTError


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shipped"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    monkeypatch.setattr("fbt_plugins.weights.embedded_folder", lambda: folder)
    monkeypatch.setattr("fbt_plugins.data.embed_teacher.embedded_folder", lambda: folder)
    return folder


def test_a_run_becomes_a_teacher_found_by_name(tmp_path: Path, shipped: Path) -> None:
    model = ARCHITECTURES.build(RESMLP)
    save_student(model, tmp_path / "student.safetensors", dict(classes=["a", "b"]))
    summary = dict(student_top1=91.5, split="test", seed=0, best_epoch=3, seconds=9, device="cpu", versions={})
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    embed(tmp_path, "toy", "python tools/train.py toy.py")
    entry = json.loads((shipped / "manifest.json").read_text())["toy"]
    assert entry["accuracy"] == dict(top1=91.5, split="test") and entry["parameters"] == sum(
        p.numel() for p in model.parameters()
    )
    again = ARCHITECTURES.build(dict(RESMLP, checkpoint="embedded:toy"))
    assert torch.equal(again.net.head.weight, model.net.head.weight)


def test_an_unfinished_run_is_refused(tmp_path: Path, shipped: Path) -> None:
    with pytest.raises(FBTError, match="not the folder of a finished run"):
        embed(tmp_path, "toy", "")
