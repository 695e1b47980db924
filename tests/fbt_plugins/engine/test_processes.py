"""Two processes do what one does, through gloo; with ``-m slow`` torchrun starts them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Done, Typed
from runs import assert_equal, records
from torch import distributed as dist
from two_processes import BATCH_NORM, DRAWN, SCHEDULED, accuracy, build, gradients

from fbt_plugins.engine.hooks.checkpoints import find_resume, read_checkpoint
from fbt_plugins.engine.processes import find_processes, freeze_unreached, leave_processes
from fbt_plugins.errors import FBTError

TESTS = Path(__file__).parents[2]


def two(what: str, folder: Path) -> list[Done]:
    """Two processes that find each other as torchrun's do, with its variables."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        found = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free.getsockname()[1]), WORLD_SIZE="2")
    environments = ({**os.environ, **found, "RANK": rank, "LOCAL_RANK": rank} for rank in "01")
    started = [Typed(TESTS / "two_processes.py", what, folder, cwd=folder, env=env) for env in environments]
    return [process.done() for process in started]


def torchrun(what: str, folder: Path) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [*start, str(TESTS / "two_processes.py"), what, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)


def problems(done: subprocess.CompletedProcess[str]) -> str:
    """What is worth reading of torchrun's output."""
    lines = [line for line in done.stderr.splitlines() if "rror" in line and "error_file" not in line]
    return "\n".join(lines) or done.stderr[-2000:]


def saved(folder: Path, name: str) -> list[Any]:
    return [torch.load(folder / f"{name}_{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_gradients_are_those_of_one_process_with_the_whole_batch(tmp_path: Path) -> None:
    """InfoNCE compares with the other process's images; unreached parameters are left out; splices and edges change."""
    for done in two("check_gradients", tmp_path):
        assert done.code == 0, done.err[-2000:]
    for name, options, draw, progress in (
        ("gradients", {}, None, None),
        ("unreached", {"model.edges": ["teacher_to_student", "fusion_to_student"]}, None, None),
        ("drawn", DRAWN, 1, None),
        ("drawn_next", DRAWN, 2, None),
        ("off", SCHEDULED, None, 0.1),
        ("rising", SCHEDULED, None, 0.5),
    ):
        expected = gradients(build(tmp_path, "one", **{"train_dataloader.batch_size": 8}, **options), draw, progress)
        for found in saved(tmp_path, name):
            assert found.keys() == expected.keys() and len(found) > 20
            for key, value in expected.items():
                assert (found[key] - value).norm() <= 1e-6 * max(float(value.norm()), 1.0), key


@pytest.mark.slow
def test_statistics_agree_validation_counts_once_and_resume_is_exact(tmp_path: Path) -> None:
    done = torchrun("check_training", tmp_path)
    assert done.returncode == 0, problems(done)
    first, second = saved(tmp_path, "statistics")
    assert len(first) > 40 and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for rank in (0, 1):
        whole, resumed = saved(tmp_path, "whole")[rank], saved(tmp_path, "resumed")[rank]
        assert_equal(whole, resumed, f"rank {rank}")
    ends = [read_checkpoint(tmp_path / run / "iter_12.pth") for run in ("whole", "killed")]
    for part in ("state_dict", "optimizer", "loss_window", "rank_statistics"):
        assert_equal(ends[0][part], ends[1][part], part)
    assert records(tmp_path / "whole") == records(tmp_path / "killed")  # each process went on with its own losses
    # The run ended with its best weights; one process finds the same accuracy with them.
    one = build(tmp_path, "one", **BATCH_NORM)
    one.model.load_state_dict(read_checkpoint(next((tmp_path / "whole").glob("best_*")))["state_dict"])
    assert saved(tmp_path, "metrics") == [accuracy(one)] * 2


@pytest.mark.slow
def test_a_process_that_dies_ends_the_job_with_a_line(tmp_path: Path) -> None:
    done = torchrun("die", tmp_path)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "another process of this job is gone" in lines[0], done.stderr[-3000:]
    assert "epoch_1.pth is whole; go on with --resume" in lines[0]


def test_a_signal_to_one_process_stops_all_at_the_same_step(tmp_path: Path) -> None:
    for done in two("stop", tmp_path):
        assert done.code == 128 + signal.SIGTERM and "stopped by SIGTERM; saved" in done.err, done.err[-3000:]
    _, checkpoint = find_resume(tmp_path / "stopped", 4)
    assert checkpoint["meta"]["iter"] >= 6 and checkpoint["meta"]["world_size"] == 2


def test_who_is_who_under_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = dict(SLURM_PROCID="3", SLURM_NTASKS="4", SLURM_LOCALID="1", MASTER_ADDR="node1")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.setenv(name, "x")  # so that they are restored
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    find_processes("slurm")
    assert [os.environ[n] for n in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")] == ["3", "4", "1", "29500"]


def test_a_launcher_that_did_not_start_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    with pytest.raises(FBTError, match="no SLURM_PROCID in the environment; start with srun"):
        find_processes("slurm")


def test_what_no_loss_reaches_is_found_without_a_trace(make: Any) -> None:
    distiller = make(edges=["teacher_to_student", "fusion_to_student"])
    before = {name: value.clone() for name, value in distiller.state_dict().items()}
    names = freeze_unreached(distiller)
    assert names and all(name.startswith("fusions.fusion.junctions") for name in names)
    assert all(torch.equal(value, before[name]) for name, value in distiller.state_dict().items())
    assert all(p.grad is None for p in distiller.parameters())
    assert freeze_unreached(make()) == []


# ---- processes b ----------------------------------------------------------------------------------------------------


def test_a_run_takes_its_process_group_apart(tmp_path: Path) -> None:
    leave_processes()  # one process has none
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    leave_processes()
    assert not dist.is_initialized()
