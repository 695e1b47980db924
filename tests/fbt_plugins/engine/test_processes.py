"""Devices, data workers, the lock of a run's folder; two processes do what one does (with ``-m slow`` by torchrun)."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Done, Typed
from runs import Build, assert_equal, assert_same, records, run
from torch import distributed as dist
from two_processes import BATCH_NORM, DRAWN, SCHEDULED, accuracy, build, figures_of_features, gradients

from fbt_plugins.engine.checkpoints.files import find_resume, read_checkpoint
from fbt_plugins.engine.data_workers import worker_context
from fbt_plugins.engine.device import resolve_device, slowdown
from fbt_plugins.engine.hooks import run_tables as screen
from fbt_plugins.engine.processes import LOCK, find_processes, freeze_unreached, leave_processes, one_run
from fbt_plugins.engine.runner import DistillRunner
from fbt_plugins.errors import SIGNALS, ConfigError, FBTError, Interrupted
from fbt_plugins.files import locked

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
    unreached = {"model.edges": ["teacher_to_student", "fusion_to_student"]}
    for options, steps in (
        ({}, {"gradients": (None, None)}),
        (unreached, {"unreached": (None, None)}),
        (DRAWN, {"drawn": (1, None), "drawn_next": (2, None)}),
        (SCHEDULED, {"off": (None, 0.1), "rising": (None, 0.5)}),
    ):
        runner = build(tmp_path, "one", **{"train_dataloader.batch_size": 8}, **options)
        if not options:  # a bank of labelled images is looked at whole, each image once
            assert saved(tmp_path, "figures_of_features") == [figures_of_features(runner)] * 2
        for name, (draw, progress) in steps.items():
            expected = gradients(runner, draw, progress)
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


# ---- device ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason"), [("tpu", "not a device"), ("mps", "only cpu and cuda"), ("cuda:99", "no CUDA device 99")]
)
def test_a_device_that_is_not_there_is_refused(name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        resolve_device(name)


def test_a_precision_that_is_slow_here_is_a_loud_warning(
    config: Build, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    assert slowdown(torch.bfloat16, cpu) > 0 and slowdown(torch.float32, cpu) == 1
    for factor, told in ((51.4, True), (1.9, False)):
        monkeypatch.setattr(screen, "slowdown", lambda dtype, device, factor=factor: factor)
        run(config(f"run_{told}", **{"optim_wrapper.precision": "bf16", "train_cfg.max_epochs": 1}))
        assert ("bf16 takes 51 times as long as fp32" in capsys.readouterr().out) == told


# ---- loader workers -------------------------------------------------------------------------------------------------


WORKERS = {"train_dataloader.num_workers": 2}


def kill(number: int, *processes: int) -> None:
    """Sends a signal as another process does."""
    subprocess.run(["kill", f"-{number}", *map(str, processes)], check=True)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_outlive_signals_from_elsewhere(method: str) -> None:
    context: Any = worker_context(multiprocessing.get_context(method))
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    worker = context.Process(target=time.sleep, args=(30,))
    worker.start()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == blocked
    for number in SIGNALS:
        kill(number, worker.pid)  # the first comes while the worker begins
    worker.join(0.3)
    assert worker.is_alive()
    end = time.monotonic() + 60
    while worker.is_alive() and time.monotonic() < end:
        worker.terminate()  # the parent's own SIGTERM, of which one that another's still waits beside is lost
        worker.join(0.2)
    assert worker.exitcode == 0


@pytest.mark.slow
@pytest.mark.parametrize("lost", [False, True], ids=["a signal to all", "workers that are gone as well"])
def test_a_signal_to_the_group_saves(config: Build, whole: DistillRunner, lost: bool) -> None:
    stopped = DistillRunner.from_cfg(config("stopped", **WORKERS))
    step = stopped.model.train_step

    def signalled(*args: Any, **kwargs: Any) -> Any:
        if stopped.iter == 5:
            workers = [worker.pid for worker in multiprocessing.active_children() if worker.pid]
            assert len(workers) == 2
            kill(signal.SIGKILL if lost else signal.SIGTERM, *workers)
            kill(signal.SIGTERM, os.getpid())
        return step(*args, **kwargs)

    stopped.model.train_step = signalled
    with pytest.raises(Interrupted, match=r"stopped by SIGTERM; saved .*epoch_1_iter_6.pth"):
        stopped.train()
    assert_same(whole, run(config("stopped", resume=True, **WORKERS)), "epoch_3.pth")


# ---- run lock -------------------------------------------------------------------------------------------------------


def test_a_second_run_is_told_whose_the_folder_is(config: Build, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "epoch_1.pth").write_bytes(b"the first run's")
    with one_run(tmp_path / "run"):
        whose = rf"process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(FBTError, match=rf"run: another run is in this folder; .* \({whose}\)$") as caught:
            run(config("run"))
        assert len(caught.value.lines()) == 1
    assert {path.name for path in (tmp_path / "run").glob("*.*")} >= {"epoch_1.pth"}
    assert not list((tmp_path / "run").glob("earlier_*")) and not (tmp_path / "run" / "config.py").exists()
    with one_run(tmp_path / "run"):
        pass


_HOLDER = """
import os, sys, time
from pathlib import Path
from fbt_plugins.files import locked
with locked(Path(sys.argv[1]), "taken", wait=False):
    if os.fork() == 0:  # a data worker, say
        print(os.getpid(), flush=True)
        time.sleep(60)
        os._exit(0)
    time.sleep(60)
"""


def test_a_killed_process_has_no_lock_even_where_its_workers_live_on(tmp_path: Path) -> None:
    path = tmp_path / LOCK
    holder = Typed("-c", _HOLDER, path, cwd=tmp_path)
    while not (worker := (holder.folder / "out").read_text()).endswith("\n"):
        assert holder.poll() is None
        time.sleep(0.01)
    try:
        with (
            pytest.raises(FBTError, match=rf"^taken \(process {holder.pid} on "),
            locked(path, "taken", wait=False),
        ):
            pass
        holder.kill()
        holder.done()
        os.kill(int(worker), 0)
        with locked(path, "taken", wait=False):
            assert path.read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"
    finally:
        os.kill(int(worker), signal.SIGKILL)


def test_a_file_system_without_locks_is_told_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with one_run(tmp_path):
        assert "nothing keeps a second run out of this folder" in " ".join(capsys.readouterr().out.split())
