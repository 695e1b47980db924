"""The main job, typed as the README has it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, str(ROOT / "tools" / "train.py"), str(ROOT / "configs" / "fbt_convnext_resmlp.py")]


def test_a_shortened_flagship_from_another_folder(tmp_path: Path) -> None:
    """One epoch of two batches: what is shown and what is left behind, found by name and not by the current folder."""
    short = [
        "train_dataloader.num_batch_per_epoch=2",
        "train_cfg.max_epochs=1",
        "test_dataloader.num_batch_per_epoch=1",
    ]
    done = subprocess.run(
        [*COMMAND, "--device", "cpu", "--cfg-options", *short], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for shown in ("splice S1-3+T4", "before the first step", "validation top-1", "ms / image", "student.safetensors"):
        assert shown in done.stdout, done.stdout
    assert "WARNING" not in done.stdout
    folder = tmp_path / "work_dirs" / "fbt_convnext_resmlp"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["teacher_top1"] > 85 > summary["student_top1"]
    student = timm.create_model(
        "resmlp_s4_patch4_32", num_classes=10, checkpoint_path=str(folder / "student.safetensors")
    )
    assert student(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.slow
def test_the_whole_flagship(tmp_path: Path) -> None:
    done = subprocess.run([*COMMAND, "--device", "cpu"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "work_dirs" / "fbt_convnext_resmlp" / "summary.json").read_text())
    assert summary["teacher_top1"] > 90
    assert summary["student_top1"] > 82
