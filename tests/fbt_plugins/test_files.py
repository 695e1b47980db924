"""Files, errors and randomness."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import runpy
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import fbt_plugins
from fbt_plugins.data import FashionMNISTMini, derive_seed, seeded
from fbt_plugins.errors import ConfigError, FBTError, run
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


# ---- errors ---------------------------------------------------------------------------------------------------------


class Broken(Dataset[int]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        raise FBTError("images/7.png is no readable image")


def ended(main, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:  # type: ignore[no-untyped-def]
    with pytest.raises(SystemExit) as end:
        run(main)
    return end.value.code, capsys.readouterr().err.splitlines()


def test_every_problem_is_a_line_and_the_code_is_two(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise ConfigError(["one", "two"])

    assert ended(main, capsys) == (2, ["error: one", "error: two"])


def test_a_data_workers_error_is_the_same_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    loader = DataLoader(Broken(), num_workers=1)
    assert ended(lambda: list(loader), capsys) == (2, ["error: images/7.png is no readable image"])


def test_success_and_interruption_have_their_own_codes(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    assert ended(lambda: None, capsys) == (0, [])
    assert ended(interrupted, capsys) == (130, ["stopped"])


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 // int(torch.zeros(1)))


# ---- randomness -----------------------------------------------------------------------------------------------------


def numbers() -> list[float]:
    return [torch.rand(1).item(), random.random(), np.random.rand()]


def test_seeded_starts_all_three_generators() -> None:
    with seeded(7):
        first = numbers()
    with seeded(7):
        assert numbers() == first
    with seeded(2**64 - 1):
        assert all(a != b for a, b in zip(numbers(), first, strict=True))


def test_derived_seeds_never_change() -> None:
    assert derive_seed(0, 0, 0) == 11684132067157788011
    assert derive_seed(1, 0) != derive_seed(0, 1) != derive_seed(0, 1, 0)
    assert derive_seed(np.int64(3), torch.tensor(4)) == derive_seed(3, 4)
    assert len({derive_seed(s, e, i) for s in range(5) for e in range(5) for i in range(40)}) == 1000


TIMM = [{"type": "timm", "input_size": 28, "is_training": True, "auto_augment": "rand-m9-mstd0.5", "re_prob": 0.5}]


def test_random_numbers_of_the_process_go_on_undisturbed() -> None:
    def draw(between: object) -> list[float]:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        first = numbers()
        if between == "samples":
            FashionMNISTMini("val", TIMM)[3]
        elif between == "error":
            with pytest.raises(ZeroDivisionError), seeded(1):
                numbers()
                raise ZeroDivisionError
        return first + numbers()

    assert draw(None) == draw("samples") == draw("error")


def test_a_pipe_is_no_terminal_whoever_forces_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    console = runpy.run_path(str(Path(fbt_plugins.__file__).with_name("console.py")))["console"]
    assert not console.is_terminal and console.width == 120
