"""Data workers: processes that leave signals to the run that they work for."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.context import (
    BaseContext,
    ForkContext,
    ForkProcess,
    ForkServerContext,
    ForkServerProcess,
    SpawnContext,
    SpawnProcess,
)
from multiprocessing.process import BaseProcess
from typing import Any

from ..errors import SIGNALS

AUTO = "auto"
_MOST = 8


def worker_count(asked: int | str | None) -> int:
    """How many processes read images.

    Args:
        asked: a number; None is 0; ``"auto"`` one for each core that this process may use, up to 8.
    """
    if asked != AUTO:
        return int(asked or 0)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST)


class _Deaf(BaseProcess):
    """A process that leaves what :data:`SIGNALS` ask for to its parent; a SIGTERM from the parent itself ends it."""

    def start(self) -> None:
        if not isinstance(self, ForkProcess):
            resource_tracker.ensure_running()  # which lets signals through once it has been started
        # Blocked until `run` has said what they mean in the new process, which inherits what is blocked, also where it
        # is a new interpreter, or a server that forks: there is no moment in which one of them kills it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def run(self) -> None:
        ignored = [number for number in SIGNALS if number != signal.SIGTERM]
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)
        # SIGTERM stays blocked, for a handler in Python is not told who sent it; and it is how torch and Python end a
        # worker that hangs.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ignored)
        parent = multiprocessing.parent_process()
        assert parent is not None
        threading.Thread(target=_end_when_the_parent_says_so, args=(parent.pid,), daemon=True).start()
        super().run()


def _end_when_the_parent_says_so(parent: int | None) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class _Forked(_Deaf, ForkProcess): ...


class _Spawned(_Deaf, SpawnProcess): ...


class _Served(_Deaf, ForkServerProcess): ...


class _Fork(ForkContext):
    Process = _Forked


class _Spawn(SpawnContext):
    Process = _Spawned


class _ForkServer(ForkServerContext):
    Process = _Served


_CONTEXTS: dict[str, BaseContext] = {"fork": _Fork(), "spawn": _Spawn(), "forkserver": _ForkServer()}


def worker_context(given: Any = None) -> BaseContext | None:
    """What a DataLoader makes its workers by; None, its own way, where the system does not say who sent a signal.

    Args:
        given: the loader's own ``multiprocessing_context``; None for Python's default.
    """
    if not hasattr(signal, "sigwaitinfo"):
        return None
    return _CONTEXTS[given.get_start_method() if given is not None else multiprocessing.get_start_method()]


def begin(loader: Iterable[Any]) -> Iterator[Any]:
    """Iterates over a DataLoader, to which a worker that is gone is an error where its batch is asked for.

    Torch's own handler of SIGCHLD raises it at once, which may be in the middle of a step or of a save.
    """
    if threading.current_thread() is not threading.main_thread():
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    signal.signal(signal.SIGCHLD, before)
    return batches
