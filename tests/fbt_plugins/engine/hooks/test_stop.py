"""Signals: flags that nothing overwrites; what a run that is told to stop saves and says."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from runs import Build, assert_same, run

from fbt_plugins.engine.hooks import stop
from fbt_plugins.engine.hooks.stop import Signals, StopHook
from fbt_plugins.engine.runner import DistillRunner
from fbt_plugins.errors import SIGNALS, Interrupted, Telling, end_at_once, hearing
from fbt_plugins.errors import run as command
from fbt_plugins.files import write_atomic


@pytest.fixture(autouse=True)
def _no_nohup() -> Iterator[None]:
    """Tests that are begun with ``nohup`` are not told of SIGHUP otherwise."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_after_the_step_and_says_how_to_go_on(
    config: Build, whole: DistillRunner, number: signal.Signals
) -> None:
    stopped = DistillRunner.from_cfg(config("stopped"))
    step = stopped.model.train_step

    def signalled(*args: Any, **kwargs: Any) -> Any:
        if stopped.iter == 5:
            os.kill(os.getpid(), number)
        return step(*args, **kwargs)

    stopped.model.train_step = signalled
    handler = signal.getsignal(number)
    with pytest.raises(Interrupted, match=rf"stopped by {number.name}; saved .*epoch_1_iter_6.pth.*--resume") as stop:
        stopped.train()
    assert stop.value.exit_code == 128 + number and signal.getsignal(number) is handler
    assert_same(whole, run(config("stopped", resume=True)), "epoch_3.pth")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_during_the_question_is_kept(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The first process writes a checkpoint, the second waits for its answer, and both get the signal meanwhile."""
    hook = StopHook()
    answers = iter((lambda: signal.raise_signal(number), lambda: None))
    monkeypatch.setattr(stop.dist, "all_reduce", lambda *_, **__: next(answers)())
    hook._group = "gloo"
    with hook._signals:
        assert [hook._told(), hook._told()] == [0, number]


def test_timeout_sends_an_interrupt_twice_and_means_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with Signals() as signals:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        assert signals.received == signal.SIGINT
        now = time.monotonic()
        monkeypatch.setattr(stop.time, "monotonic", lambda: now + 1)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_before_a_run_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: signal.Signals, tmp_path: Path
) -> None:
    """While models and data are built: no mistake, so that nothing catches it, and what is half written is removed."""
    handler = signal.getsignal(number)

    def build() -> None:
        try:
            write_atomic(tmp_path / "file", b"1")
        except Exception:
            pytest.fail("it was taken for a mistake")

    monkeypatch.setattr(os, "fsync", lambda handle: signal.raise_signal(number))
    with pytest.raises(SystemExit) as ended:
        command(build)
    assert ended.value.code == 128 + number and signal.getsignal(number) is handler
    assert capsys.readouterr().err == f"stopped by {number.name}\n" and not list(tmp_path.iterdir())


def test_a_signal_before_the_first_step_says_what_there_is_to_go_on_from(config: Build) -> None:
    runner = DistillRunner.from_cfg(config("run"))
    runner.load_or_resume = lambda: signal.raise_signal(signal.SIGTERM)  # type: ignore[method-assign]
    with hearing(Telling()), pytest.raises(Interrupted, match="stopped by SIGTERM; nothing was saved yet") as stop:
        runner.train()
    assert stop.value.exit_code == 143


def test_a_terminal_that_is_gone_changes_no_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(text: str) -> int:
        raise OSError(errno.EIO, "Input/output error")

    def stop() -> None:
        raise Interrupted("stopped by SIGHUP", signal.SIGHUP)

    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, SimpleNamespace(write=refuse, flush=lambda: None))
    with pytest.raises(SystemExit) as ended:
        command(stop)
    assert ended.value.code == 129


def test_a_process_that_waits_for_others_is_ended_at_once() -> None:
    """While it waits for one that a signal has ended already, Python runs no handler."""
    with hearing(Telling()):
        end_at_once()
        assert {signal.getsignal(number) for number in SIGNALS} == {signal.SIG_DFL}
    with Signals() as signals:
        end_at_once()
        signal.raise_signal(signal.SIGTERM)
    assert signals.received == signal.SIGTERM


def test_nohup_is_obeyed() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            signal.raise_signal(signal.SIGHUP)
            assert not signals.received
    finally:
        signal.signal(signal.SIGHUP, before)


def test_workers_that_are_gone_stop_a_run_only_after_a_signal() -> None:
    saved: list[Any] = []
    checkpoints = SimpleNamespace(saved=-1, last_ckpt="iter_7.pth", save_now=lambda _, *at: saved.append(at))
    runner: Any = SimpleNamespace(epoch=1, iter=7, cfg={}, checkpoints=checkpoints)
    runner.optim_wrapper = SimpleNamespace(should_update=lambda: True)
    hook = StopHook()
    hook.after_workers_lost(runner)
    hook._signals.received = signal.SIGTERM
    with pytest.raises(Interrupted, match="stopped by SIGTERM"):
        hook.after_workers_lost(runner)
    assert saved == [(1, 7)]


def test_a_signal_in_the_validation_that_a_resume_repeats(config: Build, whole: DistillRunner, tmp_path: Path) -> None:
    broken = DistillRunner.from_cfg(config("run"))
    broken.model.val_step = lambda *data: 1 / 0
    with pytest.raises(ZeroDivisionError):
        broken.train()
    stopped = DistillRunner.from_cfg(config("run", resume=True))
    step = stopped.model.val_step
    stopped.model.val_step = lambda *data: (signal.raise_signal(signal.SIGTERM), step(*data))[1]
    with pytest.raises(Interrupted, match=r"stopped by SIGTERM; saved .*epoch_1.pth; the same command with --resume"):
        stopped.train()
    assert_same(whole, run(config("run", resume=True)), "epoch_3.pth")
