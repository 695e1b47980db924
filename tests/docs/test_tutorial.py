"""The tutorial's cells run, and make its pictures."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fbt_plugins.commands import fbt

pyplot = pytest.importorskip("matplotlib.pyplot")

NOTEBOOK = Path(__file__).parents[2] / "docs" / "tutorial.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
QUICK = [
    "train_cfg.max_epochs=1",
    "teacher_cache=None",
    *(f"{split}_dataloader.num_batch_per_epoch=1" for split in ("train", "val", "test")),
]
"""The same run on one batch of each split, without changes of its schedule."""


def text(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


@pytest.fixture
def in_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """What cells write and draw is of this test alone."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    backend = pyplot.get_backend()
    pyplot.switch_backend("agg")
    monkeypatch.setattr(pyplot, "show", lambda: None)
    yield
    pyplot.close("all")
    pyplot.switch_backend(backend)


def as_python(code: str) -> str:
    """A cell's code without Jupyter: ``!fbt ...{value}... | cat`` calls the command in this process."""
    code = code.replace("from IPython.display import Image\n", "")
    return re.sub(r"^!fbt (.*) \| cat$", lambda match: f"fbt(f{match[1]!r})", code, flags=re.MULTILINE)


@pytest.mark.usefixtures("in_a_folder")
def test_the_cells_make_the_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    def command(line: str) -> None:
        words = [word for word in shlex.split(line) if not word.startswith(("train_cfg.max_", "param_scheduler."))]
        fbt([*words, *QUICK])

    shown: list[Path] = []
    names: dict[str, Any] = {"fbt": command, "Image": lambda filename: shown.append(filename)}
    figures: list[Any] = []
    for cell in CELLS:
        if cell["cell_type"] == "code":
            exec(as_python(text(cell)), names)
            figures += [pyplot.figure(number) for number in pyplot.get_fignums()]
            figures = list(dict.fromkeys(figures))
    images, maps, neighbours = figures
    assert len(images.axes) == 10 and len(neighbours.axes) == 5 * 7
    titles = [axis.get_title() for axis in maps.axes[:-1]]  # the last is the colours'
    assert titles == ["teacher and student", "teacher and fusion", "fusion and student"]
    values = maps.axes[0].images[0].get_array()
    assert values.shape == (4, 4) and values.max() <= 1 < 20 * values.max()
    (curves,) = shown
    assert Path(curves).read_bytes().startswith(b"\x89PNG")
    assert re.search(r"\d+ % of 500 test images\nstudent \d+\.\d %, teacher 9\d\.\d % top-1", capsys.readouterr().out)


def test_it_is_committed_as_it_ran() -> None:
    """In order, without an error, with its pictures, and small enough for a browser."""
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert len([output for output in outputs if "image/png" in output.get("data", {})]) == 4
    assert NOTEBOOK.stat().st_size < 500_000


@pytest.mark.slow
def test_jupyter_runs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a reader runs it; on two cores that do nothing else it takes less than three minutes."""
    pytest.importorskip("ipykernel")
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    pictures = [o for cell in notebook.cells for o in cell.get("outputs", ()) if "image/png" in o.get("data", {})]
    assert len(pictures) == 4
    summary = json.loads((tmp_path / "work_dirs" / "fbt_convnext_resmlp" / "summary.json").read_text())
    assert summary["student_top1"] > 75
