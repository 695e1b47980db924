"""Workers of a data loader stay when a signal goes to the whole process group; their parent can still end them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import time
from typing import Any

import pytest
from runs import Build, assert_same, run

from fbt_plugins.engine.loader_workers import SIGNALS, worker_context
from fbt_plugins.engine.runner import DistillRunner
from fbt_plugins.errors import Interrupted

WORKERS = {"train_dataloader.num_workers": 2}


def kill(number: int, *processes: int) -> None:
    """Sends a signal as another process does."""
    subprocess.run(["kill", f"-{number}", *map(str, processes)], check=True)


def test_workers_outlive_signals_from_elsewhere() -> None:
    context: Any = worker_context()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    worker = context.Process(target=time.sleep, args=(30,))
    worker.start()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == blocked
    for number in SIGNALS:
        kill(number, worker.pid)  # the first comes while the worker begins
    worker.join(0.3)
    assert worker.is_alive()
    worker.terminate()  # the parent's own SIGTERM
    worker.join(5)
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
