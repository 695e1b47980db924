"""``fbt configs``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from fbt_plugins.commands import fbt

CONFIGS = Path(__file__).parents[3] / "configs"
FILES = {path for path in CONFIGS.rglob("*.py") if "_base_" not in path.parts}


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands put the working folder on it."""
    monkeypatch.setattr(sys, "path", [*sys.path])


def test_each_config_is_listed_once_with_a_line_that_stands_alone(capsys: pytest.CaptureFixture[str]) -> None:
    fbt(["configs"])
    *lines, blank, folder = capsys.readouterr().out.splitlines()
    rows = [line.split(maxsplit=1) for line in lines]
    names = sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in FILES)
    assert sorted(name for name, _ in rows) == names and not blank and folder == f"in {CONFIGS}"
    assert not [about for _, about in rows if len(about) < 20 or about[-1] not in ".?"]
    assert max(map(len, lines)) <= 120


def test_programs_read_json(capsys: pytest.CaptureFixture[str]) -> None:
    fbt(["configs", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert {Path(row["path"]) for row in rows} == FILES
    assert all(Path(row["path"]) == CONFIGS / f"{row['name']}.py" and row["about"] for row in rows)
