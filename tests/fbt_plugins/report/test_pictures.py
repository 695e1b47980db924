"""Pictures of one run."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from runs import run

from fbt_plugins.engine.hooks import progress
from fbt_plugins.engine.hooks.curves import draw_curves

pytest.importorskip("matplotlib")
from fbt_plugins.report.pictures import confusion_matrix, training_curves

RECORDS = [
    {"iter": 1, "epoch": 1, "train/loss": 3.0, "train/task": 2.0, "train/lr": 0.1, "train/images_per_second": 5.0},
    {"iter": 2, "epoch": 1, "train/loss": 2.0, "train/task": 1.0, "train/lr": 0.2, "train/images_per_second": 5.0},
    {"iter": 2, "epoch": 1, "val/student_top1": 40.0, "val/teacher_top1": 90.0},
]


def pixels(picture: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(picture)).convert("L"))


def test_curves_show_what_was_recorded() -> None:
    whole = training_curves(RECORDS)
    alone = training_curves(RECORDS[:2])
    assert whole is not None and alone is not None and training_curves([]) is None
    assert pixels(whole).shape[1] == 1.5 * pixels(alone).shape[1]  # three panels, and two without a validation
    knn = [{"iter": 1, "val/student_knn": 30.0}, {"iter": 2, "val/student_knn": 35.0}]
    assert (drawn := training_curves(knn)) is not None and pixels(drawn).shape[1] == pixels(alone).shape[1] / 2


def test_a_confusion_matrix_is_dark_where_the_images_are() -> None:
    picture = pixels(confusion_matrix([[9, 1], [0, 10]], ["$a", "b"], "t"))
    other = pixels(confusion_matrix([[1, 9], [10, 0]], ["$a", "b"], "t"))
    assert picture.shape == other.shape and (picture != other).any()
    assert pixels(confusion_matrix(np.eye(200, dtype=int).tolist(), [str(i) for i in range(200)], "many")).any()


def test_a_run_leaves_its_curves(config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"model.teacher": None, "model.fusion": None, "model.edges": [], "train_cfg.max_epochs": 1}
    options |= {"model.feature_loss": None, "model.logit_loss": None, "default_hooks.progress.curves": True}
    folder = Path(run(config("run", **options)).work_dir)
    assert Image.open(folder / "curves.png").format == "PNG"
    assert json.loads((folder / "summary.json").read_text())["student_top1"] >= 0


def test_a_picture_that_fails_costs_no_run(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(folder: Path) -> None:
        raise RuntimeError("no fonts")

    monkeypatch.setattr(progress, "draw_curves", fail)
    options = {"model.teacher": None, "model.fusion": None, "model.edges": [], "train_cfg.max_epochs": 1}
    options |= {"model.feature_loss": None, "model.logit_loss": None, "default_hooks.progress.curves": True}
    folder = Path(run(config("run", **options)).work_dir)
    assert "curves  not drawn: RuntimeError: no fonts" in capsys.readouterr().out
    assert (folder / "summary.json").is_file() and not (folder / "curves.png").exists()


def test_records_that_were_cut_short_are_left_out(tmp_path: Path) -> None:
    lines = [*map(json.dumps, RECORDS), '{"iter": 3, "tra']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    draw_curves(tmp_path)
    assert (tmp_path / "curves.png").read_bytes() == training_curves(RECORDS)
