"""The main job, typed as the README has it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from conftest import CONVNEXT
from runs import TINY

ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, str(ROOT / "tools" / "train.py"), str(ROOT / "configs" / "fbt_convnext_resmlp.py")]


def test_a_shortened_flagship_from_another_folder(tmp_path: Path) -> None:
    """One epoch of two batches: what is shown and what is left behind, found by name and not by the current folder."""
    short = [
        "train_dataloader.num_batch_per_epoch=2",
        "train_cfg.max_epochs=1",
        "val_dataloader.num_batch_per_epoch=1",
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


TEACHERS = """
_base_ = "student.py"
model = dict(teacher=None, fusion=None, edges=[], feature_loss=None, logit_loss=None)
teacher_run = None
pairs = dict(conv=dict(model=dict(student={convnext}), publish="teachers/conv.safetensors"))
methods = dict(plain=dict())
"""
STUDENT = """
train_cfg = dict(by_epoch=True, max_epochs=1)
train_dataloader["num_batch_per_epoch"] = 1
model["teacher"]["checkpoint"] = "teachers/conv.safetensors"
teacher_run = dict(config="{{ fileDirname }}/teachers.py", pair="conv", method="plain")
"""


@pytest.fixture
def train(tool: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Runs the tool in a folder with the configs of a student and its teachers; exit code and what it wrote."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "student.py").write_text(TINY + STUDENT)
    (tmp_path / "teachers.py").write_text(TEACHERS.format(convnext=CONVNEXT))
    return lambda *args: tool("train", *args)


def test_a_missing_teacher_is_refused_with_the_command_that_makes_it(train: Callable) -> None:
    code, _, error = train("student.py")
    command = f"{ROOT}/tools/train.py teachers.py --pair conv --method plain"
    assert code == 2 and error.count("\n") == 1 and f"'python {command}' makes it" in error
    code, out, _ = train("student.py", "--check", "--cfg-options", "teacher_run.if_missing=train")
    assert code == 0 and f"is missing: trained first, in teachers/conv (python {command})" in out
    assert not Path("teachers").exists()
    code, out, _ = train(*command.split()[1:], "--resume", "auto", "--seed", "5")
    assert code == 0 and "teacher  teachers/conv.safetensors, " in out
    entry = json.loads(Path("teachers/manifest.json").read_text())["conv"]
    assert (entry["recipe"], entry["seed"]) == (f"python {command} --seed 5", 5)
    assert train("student.py", "--check")[0] == 0


@pytest.mark.slow
def test_the_whole_flagship(tmp_path: Path) -> None:
    done = subprocess.run([*COMMAND, "--device", "cpu"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "work_dirs" / "fbt_convnext_resmlp" / "summary.json").read_text())
    assert summary["teacher_top1"] > 90
    assert summary["student_top1"] > 82
