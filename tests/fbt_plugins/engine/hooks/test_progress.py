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
