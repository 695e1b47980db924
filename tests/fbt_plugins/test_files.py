"""Files that are whole or as they were, whatever happens while they are written."""

import multiprocessing
import os
import resource
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from fbt_plugins.errors import FBTError
from fbt_plugins.files import append_line, write_atomic


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
