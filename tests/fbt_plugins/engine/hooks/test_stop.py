"""Signals: what a run that is told to stop saves and says."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from runs import Build, assert_same, run

from fbt_plugins.engine.runner import DistillRunner
from fbt_plugins.errors import Interrupted


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
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
