"""What a run says of its progress."""

from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch

from fbt_plugins.engine.hooks.loss_window import LossWindow
from fbt_plugins.engine.hooks.progress import ProgressHook


def test_images_per_second_leave_out_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hook, clock = ProgressHook(), iter([100.0, 160.0])
    hook._last, hook._file = 90.0, tmp_path / "metrics.jsonl"
    monkeypatch.setattr("fbt_plugins.engine.hooks.progress.time.perf_counter", lambda: next(clock))
    runner = MagicMock(iter=4, epoch=1, max_epochs=1)
    hook.before_val_epoch(runner)
    hook.after_val_epoch(runner, {"student_top1": 50.0})
    assert hook._last == 150.0  # ten seconds of training before it


def test_a_byte_that_is_no_letter_costs_one_record_and_no_resume(tmp_path: Path) -> None:
    hook = ProgressHook()
    hook._file = tmp_path / "metrics.jsonl"
    good = [b'{"iter": 1, "a": "\xc3\xa9"}', b'{"iter": 2}']
    hook._file.write_bytes(
        b"\n".join([good[0], b'{"iter": 2, "a": "\xff"}', b"\xff\x00", b"[" * 9999, *good[1:], b'{"it'])
    )
    hook._forget_after(2)
    assert hook._file.read_bytes() == b"\n".join([*good, b""])


def test_a_window_of_losses_comes_back_also_from_before_each_process_had_its_own() -> None:
    window, names = LossWindow(), ["task", "edge/logit"]
    values = torch.tensor([[1.0, 2.0, 0.5], [3.0, 4.0, 0.0]])
    for saved in (values[None], values):
        window.load_state_dict(dict(names=names, values=saved), torch.device("cpu"))
        assert window.read() == {"task": [1.0, 3.0], "edge/logit": [2.0, 4.0], "grad_norm": [0.5, 0.0]}
        assert window.state_dict()["values"].tolist() == [values.tolist()]
    window.cut(0)
    for empty in (window.state_dict(), dict(names=names, values=torch.empty(0))):
        window.load_state_dict(empty, torch.device("cpu"))
        assert len(window) == 0
