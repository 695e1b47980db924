"""`fbt train` and `fbt benchmark`, and runs that are killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import CONVNEXT
from runs import TINY, assert_equal
from safetensors.torch import load_file

from fbt_plugins.engine.checkpoints.files import read_checkpoint, training_checkpoints

ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, str(ROOT / "tools" / "train.py"), str(ROOT / "configs" / "fbt_convnext_resmlp.py")]


@pytest.mark.slow
def test_a_shortened_flagship_from_another_folder(tmp_path: Path) -> None:
    """One epoch of two batches: what is shown and what is left behind, found by name and not by the current folder."""
    short = [
        "train_dataloader.num_batch_per_epoch=2",
        "teacher_cache=None",
        "train_cfg.max_epochs=1",
        "val_dataloader.num_batch_per_epoch=1",
        "test_dataloader.num_batch_per_epoch=1",
    ]
    done = subprocess.run(
        [*COMMAND, "--device", "cpu", "--cfg-options", *short], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for shown in (
        "splice  auto is T1-3+S4: the teacher (cnn) gives",
        "before the first step",
        "validation top-1",
        "ms / image",
        "student.safetensors",
    ):
        assert shown in done.stdout, done.stdout
    assert "WARNING" not in done.stdout
    folder = tmp_path / "work_dirs" / "fbt_convnext_resmlp"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["teacher_top1"] > 85 > summary["student_top1"] and summary["splices"] == {"fusion": ["T1-3+S4"]}
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


def test_check_looks_whether_data_are_there_and_opens_them_where_it_is_told_to(train: Callable, tmp_path: Path) -> None:
    nowhere = dict(type="ImageFolder", split="test", root="/nowhere")
    (tmp_path / "plain.py").write_text(f"{TINY}\nmodel['teacher']['checkpoint'] = None\n")
    (tmp_path / "none.py").write_text(
        f"_base_ = 'plain.py'\ntest_dataloader = dict(dataset=dict({nowhere}, _delete_=True))"
    )
    code, out, _ = train("plain.py", "--check")
    assert code == 0 and "plain.py: nothing wrong\ndata     not opened: --check --data does" in out
    code, out, _ = train("plain.py", "--check", "--data")
    assert code == 0 and "train    32 images of 32x32, 10 classes, 4 batches" in out and "test     20 images" in out
    for args in (["--check"], ["--check", "--data"]):
        code, out, error = train("none.py", *args)
        assert code == 2 and error.startswith("error: none.py: test_dataloader: ImageFolder: no folder /nowhere/test")
        assert error.count("\n") == 1 and ("none.py: nothing wrong but that data are missing" in out) == (
            len(args) == 1
        )
    code, _, error = train("plain.py", "--data")
    assert code == 2 and "--data goes with --check; a run opens all its data before it trains" in error


@pytest.mark.slow
def test_the_whole_flagship(tmp_path: Path) -> None:
    done = subprocess.run([*COMMAND, "--device", "cpu"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "work_dirs" / "fbt_convnext_resmlp" / "summary.json").read_text())
    assert summary["teacher_top1"] > 90
    assert summary["student_top1"] > 82


# ---- benchmark ------------------------------------------------------------------------------------------------------


def test_it_prints_a_table_writes_json_and_leaves_nothing_else(
    tool: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = [
        ROOT / "configs" / "tiny.py",
        "--rounds",
        "2",
        "--after",
        "5",
        "--threads",
        "1",
        "--json",
        tmp_path / "t.json",
    ]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    done = tool("benchmark", *args)
    assert done.code == 0, done.err
    for word in ("teacher", "fusion", "backward", "engine step", "images/s", "torch", "MB at most"):
        assert word in done.out
    found = json.loads((tmp_path / "t.json").read_text())
    assert found["after_iterations"] == 5 and found["milliseconds"]["whole"]["median"] > 0
    assert [p.name for p in tmp_path.iterdir()] == ["t.json"]


def test_wrong_use_is_one_line(tool: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for args in (["configs/tiny.py", "--rounds", "1"], ["configs/tinny.py"], ["configs/tiny.py", "--json", "configs"]):
        done = tool("benchmark", *args)
        assert done.code == 2 and len(done.err.splitlines()) == 1, done.err


# ---- kills ----------------------------------------------------------------------------------------------------------


KILLS = int(os.environ.get("FBT_KILLS", "50"))
SECONDS = (1.0, 20.0)
"""How long a process lives at most; half of them then live on until they write a file."""
OPTIONS = ["default_hooks.checkpoint.by_epoch=False", "default_hooks.checkpoint.interval=15", "ema.decay=0.99"]


def start(folder: Path, *args: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "tools/train.py", "configs/fbt_convnext_resmlp.py", "--work-dir", str(folder), *args]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # more would make sums in another order possible
    log = folder.with_suffix(".log").open("ab")
    return subprocess.Popen(
        [*command, "--cfg-options", *OPTIONS], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
    )


def results(folder: Path) -> dict[str, Any]:
    """All that a run leaves behind but the times, and the command, which names the folder."""
    (_, last), *more = training_checkpoints(folder, 79)
    assert not more
    checkpoint = read_checkpoint(last)
    checkpoint.pop("meta")
    checkpoint.pop("message_hub")  # has the folder's name; what else is in it shows in the summary
    summary = json.loads((folder / "summary.json").read_text())
    models = [{k: v for k, v in model.items() if k != "ms"} for model in summary.pop("models")]
    curve = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "checkpoint": checkpoint,
        "best": [read_checkpoint(path)["state_dict"] for path in sorted(folder.glob("best_*.pth"))],
        "student": load_file(folder / "student.safetensors"),
        "summary": {k: v for k, v in summary.items() if k not in ("seconds", "command")} | {"models": models},
        "curve": [{k: v for k, v in record.items() if "second" not in k} for record in curve],
    }


def unfinished(folder: Path) -> set[str]:
    """Files that are being written, and those that killed processes left behind."""
    return {entry.name for entry in os.scandir(folder) if entry.name.endswith(".tmp")} if folder.is_dir() else set()


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    moments = random.Random(seed)
    print(f"seed of the moments: {seed}")
    whole = tmp_path / "whole"
    assert start(whole).wait() == 0, whole.with_suffix(".log").read_text()[-2000:]
    expected = results(whole)
    killed = saving = runs = 0
    while killed < KILLS:
        folder = tmp_path / f"killed_{runs}"
        while True:
            left = unfinished(folder)
            process = start(folder, "--resume", "auto")
            if killed < KILLS:
                with_save, end = moments.random() < 0.5, time.monotonic() + moments.uniform(*SECONDS)
                while process.poll() is None and time.monotonic() < end:
                    time.sleep(0.01)
                while with_save and process.poll() is None and not unfinished(folder) - left:
                    time.sleep(0.0005)
                if process.poll() is None:
                    saving += bool(unfinished(folder) - left)
                    killed += 1
                    process.send_signal(signal.SIGKILL)
            if process.wait() == 0:
                break
            assert process.returncode == -signal.SIGKILL, folder.with_suffix(".log").read_text()[-2000:]
        runs += 1
        assert_equal(expected, results(folder), folder.name)
        assert not list(folder.glob(".*.tmp"))
        print(f"run {runs}: the same bits; {killed} kills so far, {saving} of them while a file was being written")
