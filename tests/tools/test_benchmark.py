"""The benchmark as a command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_prints_a_table_writes_json_and_leaves_nothing_else(tmp_path: Path) -> None:
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
    command = [sys.executable, ROOT / "tools" / "benchmark.py", *map(str, args)]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr
    for word in ("teacher", "fusion", "backward", "engine step", "images/s", "torch", "MB at most"):
        assert word in done.stdout
    found = json.loads((tmp_path / "t.json").read_text())
    assert found["after_iterations"] == 5 and found["milliseconds"]["whole"]["median"] > 0
    assert [p.name for p in tmp_path.iterdir()] == ["t.json"]


def test_wrong_use_is_one_line() -> None:
    for args in (["configs/tiny.py", "--rounds", "1"], ["configs/tinny.py"]):
        command = [sys.executable, "tools/benchmark.py", *args]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
