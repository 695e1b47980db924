"""What a run says of its progress."""

from pathlib import Path
from unittest.mock import MagicMock

import pytest

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
