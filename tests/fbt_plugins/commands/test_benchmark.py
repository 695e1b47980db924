"""The benchmark as a command."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def test_it_prints_a_table_writes_json_and_leaves_nothing_else(
    tool: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = [
        ROOT / "configs" / "tiny.py",
        "--rounds",
        "2",
        "--after",
        "5",
        "--threads",
        "1",
        "--json",
        tmp_path / "t.json",
    ]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    done = tool("benchmark", *args)
    assert done.code == 0, done.err
    for word in ("teacher", "fusion", "backward", "engine step", "images/s", "torch", "MB at most"):
        assert word in done.out
    found = json.loads((tmp_path / "t.json").read_text())
    assert found["after_iterations"] == 5 and found["milliseconds"]["whole"]["median"] > 0
    assert [p.name for p in tmp_path.iterdir()] == ["t.json"]


def test_wrong_use_is_one_line(tool: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for args in (["configs/tiny.py", "--rounds", "1"], ["configs/tinny.py"]):
        done = tool("benchmark", *args)
        assert done.code == 2 and len(done.err.splitlines()) == 1, done.err
