"""A picture of how a run went, where matplotlib is installed."""

from __future__ import annotations

import json
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...files import write_atomic

CURVES_FILE = "curves.png"


def draw_curves(folder: Path) -> None:
    """Draws ``curves.png`` of a run's folder from its ``metrics.jsonl``; nothing where that has nothing to show."""
    if find_spec("matplotlib") is None:
        return
    from ...report.pictures import training_curves

    if (picture := training_curves(_records(folder / "metrics.jsonl"))) is not None:
        write_atomic(folder / CURVES_FILE, picture)


def _records(file: Path) -> list[dict[str, Any]]:
    records = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else ():
        with suppress(ValueError):  # a line that was cut short
            records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict) and "iter" in record]
