"""The flagship killed at random moments, in the middle of saves among them, against one that ran through."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from runs import assert_equal
from safetensors.torch import load_file

from fbt_plugins.engine.hooks.checkpoints import read_checkpoint, training_checkpoints

ROOT = Path(__file__).parents[3]
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
