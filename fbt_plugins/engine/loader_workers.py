"""Worker processes of a DataLoader that outlive a signal to the whole process group, so that the run can save."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from multiprocessing.context import BaseContext, ForkContext, ForkProcess
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
"""What schedulers, users, ``sbatch --signal=USR1@60`` and a terminal that is closed send."""


class _Worker(ForkProcess):
    """A process that leaves what :data:`SIGNALS` ask for to its parent; a SIGTERM from the parent itself ends it."""

    def start(self) -> None:
        # Blocked until `run` has said what they mean in the new process: there is no moment in which one kills it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def run(self) -> None:
        ignored = [number for number in SIGNALS if number != signal.SIGTERM]
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ignored)
        # SIGTERM stays blocked, for a handler in Python is not told who sent it; and it is how torch and Python end a
        # worker that hangs.
        threading.Thread(target=_end_when_the_parent_says_so, args=(os.getppid(),), daemon=True).start()
        super().run()


def _end_when_the_parent_says_so(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class _Context(ForkContext):
    Process = _Worker


def worker_context() -> BaseContext | None:
    """What a DataLoader makes its workers by; None, its own way, where processes are not forked or signals not told."""
    forks = multiprocessing.get_start_method() == "fork"
    return _Context() if forks and hasattr(signal, "sigwaitinfo") else None


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
