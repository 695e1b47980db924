"""A folder, names of two models and a method become a run that goes, or one line that says why not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from photos import CLASSES, VIT, VIT_OF_TIMM, Fill
from PIL import Image

import fbt_plugins
import fbt_plugins.distill.edge
from fbt_plugins import ConfigError, FBTError, load_student
from fbt_plugins.commands import fbt
from fbt_plugins.commands.distill import command_line
from fbt_plugins.config.loading import load_config
from fbt_plugins.engine.one_line import distill
from fbt_plugins.engine.plan import Plan

# ---- models ----------------------------------------------------------------------------------------------------------
# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [False, True], ids=["function", "command"])
def test_one_line_without_labels(
    fill: Fill,
    network: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: bool,
) -> None:
    """From a folder to a student's file, and a config that is the same run."""
    monkeypatch.chdir(tmp_path)
    data = fill({"a/b": 12, "": 4})
    if command:
        (tmp_path / "teachers.py").write_text(
            f"import timm\n\n\ndef make():\n    return timm.create_model(num_classes=0, **{VIT_OF_TIMM})\n"
        )
        told = (
            f"--data {data} --teacher teachers.py:make --student {network} --out out --check --device cpu --method rsd"
        )
        assert (
            fbt(["distill", *told.split(), *["--img-size", "16", "--epochs", "1", "--workers", "0", "--no-pretrained"]])
            is None
        )
        shown = capsys.readouterr().out
        assert "16 images, no labels" in shown and "method   rsd" in shown and "classes 0" in shown
        assert not Path("out").exists()
        return
    out = distill(data=data, teacher=VIT, student=network, img_size=16, epochs=1, workers=0, out="out", device="cpu")
    assert "without OFALoss" in capsys.readouterr().out
    net, transform = load_student(out / "student.safetensors")
    assert net(transform(Image.new("RGB", (30, 20)))[None]).shape == (1, 8)
    assert "student_retrieval" in json.loads((out / "summary.json").read_text())
    again = load_config(out / "config.py")
    assert again.model.logit_loss is None and again.train_dataloader.dataset.root == str(data)
    assert Plan.of(out / "config.py").distiller.models.keys() == {"student", "teacher"}


@pytest.mark.slow
def test_one_line_with_labels_and_again(fill: Fill, network: str, tmp_path: Path) -> None:
    """No second run in a run's folder, but the same that goes on; a teacher of features is compared by neighbours."""
    line: dict[str, Any] = dict(student=network, img_size=16, epochs=1, workers=0, out=tmp_path / "out", device="cpu")
    line |= dict(data=fill(dict.fromkeys(CLASSES, 8)))
    out = distill(teacher=dict(VIT, num_classes=3), **line)
    assert {"student_top1", "teacher_top1", "fusion_top1"} <= json.loads((out / "summary.json").read_text()).keys()
    with pytest.raises(FBTError, match="there is a run in it already; say --resume"):
        distill(teacher=dict(VIT, num_classes=3), **line)
    distill(teacher=dict(VIT, num_classes=3), **line, resume=True)
    out = distill(teacher=VIT, **line | dict(out=tmp_path / "features"))
    assert {"student_top1", "student_knn", "teacher_knn"} <= json.loads((out / "summary.json").read_text()).keys()


@pytest.mark.parametrize(
    ("out", "line"),
    [
        ("photos/out", "it lies in --data"),
        ("file", "it is a file"),
        ("photos", "it lies in --data"),
        ("file/out", r"--out file/out: it cannot be written \(.*/file: Not a directory\)"),
        ("/proc/out", r"--out /proc/out: it cannot be written \(/proc: "),
        (".", r"--out \.: it exists, and file is in it; name an empty folder, or a new one"),
    ],
)
def test_an_out_that_cannot_be(
    fill: Fill, network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(FBTError, match=line):
        distill(data=fill({"": 8}), teacher=VIT, student=network, out=out)


def test_a_run_that_is_not_there_cannot_go_on(fill: Fill, network: str, tmp_path: Path) -> None:
    """Said with what this command has, which is less than fbt train."""
    line = (
        r"--resume: no checkpoint in --out .*; to start from the beginning, leave out --resume and name an empty folder"
    )
    with pytest.raises(FBTError, match=line) as found:
        distill(data=fill({"": 8}), teacher=VIT, student=network, out=tmp_path / "out", resume=True)
    assert "auto" not in str(found.value)


def test_a_batch_of_more_images_than_there_are_fails_the_check(fill: Fill, network: str, tmp_path: Path) -> None:
    line: dict[str, Any] = dict(data=fill({"": 12}), teacher=VIT, student=network, out=tmp_path / "out", check=True)
    with pytest.raises(ConfigError, match=r"--batch-size 1,000: 9 images make no batch of so many; say 9 or less"):
        distill(**line, img_size=16, batch_size=1000, workers=0, device="cpu")


def test_weights_that_cannot_be_downloaded_say_the_ways_out(
    fill: Fill, network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = timm.create_model

    def offline(*args: Any, pretrained: bool = False, **options: Any) -> torch.nn.Module:
        if pretrained:
            raise OSError("no network")
        return create(*args, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    line: dict[str, Any] = dict(
        data=fill(dict.fromkeys(CLASSES, 8)), student=network, out=tmp_path / "out", img_size=32
    )
    with pytest.raises(FBTError, match=r"no network.*--teacher-checkpoint FILE.*--no-pretrained") as found:
        distill(teacher="timm:resnet18", workers=0, **line)
    assert len(found.value.lines()) == 1 and not (tmp_path / "out").exists()


def test_the_room_is_the_function() -> None:
    assert fbt_plugins.distill.edge is sys.modules["fbt_plugins.distill.edge"]  # type: ignore[attr-defined]
    with pytest.raises(FBTError, match="--data nowhere: there is no such folder"):
        fbt_plugins.distill(data="nowhere", teacher=VIT, student=VIT, out="out")


def test_the_command_of_a_run_is_that_of_its_start() -> None:
    argv = ["--data", "my photos", "--teacher", "a:b", "--student", "c:d", "--out", "o", "--resume"]
    assert command_line(argv) == "fbt distill --data 'my photos' --teacher a:b --student c:d --out o"
