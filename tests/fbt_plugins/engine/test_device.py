"""Which device a run gets, and how slow it is."""

from __future__ import annotations

import pytest
import torch
from runs import Build, run

from fbt_plugins.engine.device import resolve_device, slowdown
from fbt_plugins.engine.hooks import run_tables as screen
from fbt_plugins.errors import ConfigError


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
