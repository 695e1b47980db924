import multiprocessing
import os
import resource
from multiprocessing.synchronize import Event
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from runs import Build

from fbt_plugins.engine.device import resolve_device
from fbt_plugins.engine.hooks.checkpoints import plain
from fbt_plugins.engine.hooks.progress import ProgressHook
from fbt_plugins.engine.hooks.topk import TopK
from fbt_plugins.engine.runner import DistillRunner
from fbt_plugins.errors import ConfigError, FBTError
from fbt_plugins.files import AtomicBackend, append_line, write_atomic


def test_a_write_that_fails_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")

    def broken(handle: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_lines_are_added_once_each_after_whatever_is_there(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "lines"
    for line in ("one", "two ü", "one"):
        append_line(path, line)
    assert path.read_text() == "one\ntwo ü\n" and [p.name for p in path.parent.iterdir()] == ["lines"]
    path.write_text("one\ncut sho")  # a process was killed
    append_line(path, "three")
    assert path.read_text() == "one\ncut sho\nthree\n"
    path.write_text("one\nwhole")
    append_line(path, "whole")
    assert path.read_text() == "one\nwhole"


def test_a_byte_that_is_no_letter_costs_one_record_and_no_resume(tmp_path: Path) -> None:
    hook = ProgressHook()
    hook._file = tmp_path / "metrics.jsonl"
    good = [b'{"iter": 1, "a": "\xc3\xa9"}', b'{"iter": 2}']
    hook._file.write_bytes(
        b"\n".join([good[0], b'{"iter": 2, "a": "\xff"}', b"\xff\x00", b"[" * 9999, *good[1:], b'{"it'])
    )
    hook._forget_after(2)
    assert hook._file.read_bytes() == b"\n".join([*good, b""])


def test_a_line_that_cannot_be_written_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    append_line(path, "one")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))  # a full disk takes a part of the line as well
    try:
        with pytest.raises(FBTError, match=r"lines: it cannot be written \(File too large\)"):
            append_line(path, "a line that is too long")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "one\n"
    (tmp_path / "taken").mkdir()
    with pytest.raises(FBTError, match="taken: it cannot be locked"):
        append_line(tmp_path / "taken", "one")


def _add(path: Path, begin: Event, name: int) -> None:
    begin.wait()
    for i in range(100):
        append_line(path, f"{name} {i} " + "x" * 5000)
        append_line(path, f"all {i}")


def test_processes_add_lines_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # without waits for the disk they meet more often
    forked = multiprocessing.get_context("fork")
    begin = forked.Event()
    processes = [forked.Process(target=_add, args=(tmp_path / "lines", begin, name)) for name in range(3)]
    for process in processes:
        process.start()
    begin.set()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    lines = [line.removesuffix("x" * 5000) for line in (tmp_path / "lines").read_text().splitlines()]
    assert sorted(lines) == sorted(
        [f"{name} {i} " for name in range(3) for i in range(100)] + [f"all {i}" for i in range(100)]
    )


def test_a_run_removes_what_a_killed_one_had_begun_to_write(config: Build) -> None:
    runner = DistillRunner.from_cfg(config("run"))
    half, other = (Path(runner.work_dir) / name for name in (".epoch_1.pth.abc.tmp", "notes.tmp"))
    half.write_bytes(b"half"), other.write_bytes(b"mine")
    runner.load_or_resume()
    assert not half.exists() and other.exists()


def test_an_old_checkpoint_is_removed_only_after_the_next_is_written(tmp_path: Path) -> None:
    backend = AtomicBackend()
    old, new = tmp_path / "epoch_1.pth", tmp_path / "epoch_2.pth"
    backend.put(b"1", old)
    backend.remove(old)  # mmengine's hook does this first
    assert old.exists()
    backend.put(b"2", new)
    assert not old.exists() and new.read_bytes() == b"2"
    backend.remove(new)
    backend.put(b"3", new)  # removed and written again under the same name
    assert new.read_bytes() == b"3"


def test_plain_types_survive_weights_only(tmp_path: Path) -> None:
    value = dict(a=np.float32(1.5), b=[Path("x"), (1, None)], c=torch.ones(2), d=dict(e=True))
    torch.save(plain(value), tmp_path / "x.pth")
    loaded = torch.load(tmp_path / "x.pth", weights_only=True)
    assert loaded["a"] == 1.5 and loaded["b"] == ["x", (1, None)] and loaded["d"] == dict(e=True)


def test_topk_counts_by_hand() -> None:
    logits = torch.tensor([[9.0, 5.0, 1.0], [9.0, 5.0, 1.0], [1.0, 5.0, 9.0], [5.0, 9.0, 1.0]])
    metric = TopK(topk=(1, 2, 5))
    metric.process(None, [dict(labels=torch.tensor([0, 1, 0, 1]), student=logits, teacher=-logits)])
    # student: right, second, third, right; teacher (reversed): third, second, right, third
    assert metric.evaluate(4) == dict(student_top1=50.0, student_top2=75.0, teacher_top1=25.0, teacher_top2=50.0)


def test_padding_is_trimmed() -> None:
    metric = TopK(topk=(1,))
    logits = torch.eye(3)
    metric.process(None, [dict(labels=torch.tensor([0, 1, 0]), student=logits)])
    assert metric.evaluate(2) == dict(student_top1=100.0)


@pytest.mark.parametrize(
    ("name", "reason"), [("tpu", "not a device"), ("mps", "only cpu and cuda"), ("cuda:99", "no CUDA device 99")]
)
def test_a_device_that_is_not_there_is_refused(name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        resolve_device(name)


def test_images_per_second_leave_out_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hook, clock = ProgressHook(), iter([100.0, 160.0])
    hook._last, hook._file = 90.0, tmp_path / "metrics.jsonl"
    monkeypatch.setattr("fbt_plugins.engine.hooks.progress.time.perf_counter", lambda: next(clock))
    runner = MagicMock(iter=4, epoch=1, max_epochs=1)
    hook.before_val_epoch(runner)
    hook.after_val_epoch(runner, {"student_top1": 50.0})
    assert hook._last == 150.0  # ten seconds of training before it
