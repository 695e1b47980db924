"""Students of finished runs as teachers: in a folder of them, and in the package."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import RESMLP

from fbt_plugins import ARCHITECTURES
from fbt_plugins.engine.hooks.checkpoints import save_student
from fbt_plugins.engine.hooks.publish_teacher import embed, publish
from fbt_plugins.errors import FBTError
from fbt_plugins.models.staged import StagedModel
from fbt_plugins.models.weights import find_weights


@pytest.fixture
def finished(tmp_path: Path) -> StagedModel:
    """The student of a run that has its files in the test's folder."""
    model = ARCHITECTURES.build(RESMLP)
    save_student(model, tmp_path / "student.safetensors", dict(classes=["a", "b"]))
    summary = dict(student_top1=91.5, split="test", seed=0, best_epoch=3, command="python tools/train.py toy.py")
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    return model


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shipped"
    monkeypatch.setattr("fbt_plugins.models.weights.embedded_folder", lambda: folder)
    monkeypatch.setattr("fbt_plugins.engine.hooks.publish_teacher.embedded_folder", lambda: folder)
    return folder


def test_a_run_becomes_a_teacher_found_by_name(tmp_path: Path, finished: StagedModel, shipped: Path) -> None:
    embed(tmp_path, "toy", "FASHION_MNIST=there python tools/train.py toy.py")
    entry = json.loads((shipped / "manifest.json").read_text())["toy"]
    assert entry["accuracy"] == dict(top1=91.5, split="test") and entry["recipe"].startswith("FASHION_MNIST=there")
    assert entry["parameters"] == sum(p.numel() for p in finished.parameters())
    again = ARCHITECTURES.build(dict(RESMLP, checkpoint="embedded:toy"))
    assert torch.equal(again.net.head.weight, finished.net.head.weight)


def test_an_unfinished_run_is_refused(tmp_path: Path, shipped: Path) -> None:
    with pytest.raises(FBTError, match="not the folder of a finished run"):
        embed(tmp_path, "toy")


def test_a_large_one_is_not_shipped(
    tmp_path: Path, finished: StagedModel, shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fbt_plugins.engine.hooks.publish_teacher.LIMIT", 1000)
    with pytest.raises(FBTError, match="bytes; a shipped teacher has less than 1,000"):
        embed(tmp_path, "toy")
    assert not shipped.exists()


def test_several_at_once_keep_each_others_entries(tmp_path: Path, finished: StagedModel) -> None:
    targets = [tmp_path / "teachers" / f"t{i}.safetensors" for i in range(12)]
    with ThreadPoolExecutor(12) as pool:
        entries = list(pool.map(lambda target: publish(tmp_path, target), targets))
    manifest = json.loads((tmp_path / "teachers" / "manifest.json").read_text())
    assert manifest == {target.stem: entry for target, entry in zip(targets, entries, strict=True)}
    assert manifest["t3"]["recipe"] == "python tools/train.py toy.py"
    assert all(find_weights(str(target)) == target for target in targets)


def test_a_file_that_is_not_its_entrys_is_refused(tmp_path: Path, finished: StagedModel) -> None:
    target = tmp_path / "teachers" / "toy.safetensors"
    publish(tmp_path, target)
    save_student(ARCHITECTURES.build(RESMLP), target, {})
    with pytest.raises(FBTError, match=r"not the file of its manifest.json \(sha256 differs\); put the right") as error:
        ARCHITECTURES.build(dict(RESMLP, checkpoint=str(target)))
    assert "\n" not in str(error.value)
    publish(tmp_path, target)
    ARCHITECTURES.build(dict(RESMLP, checkpoint=str(target)))


def test_a_manifest_of_something_else_is_none(tmp_path: Path, finished: StagedModel) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "an app", "student": 3}')
    ARCHITECTURES.build(dict(RESMLP, checkpoint=str(tmp_path / "student.safetensors")))
    (tmp_path / "manifest.json").write_text('{"student": ')
    with pytest.raises(FBTError, match=r"manifest.json: it cannot be read"):
        ARCHITECTURES.build(dict(RESMLP, checkpoint=str(tmp_path / "student.safetensors")))


def test_where_nothing_can_be_written_is_one_line(tmp_path: Path, finished: StagedModel) -> None:
    with pytest.raises(FBTError, match="it cannot be locked"):
        publish(tmp_path, tmp_path / "summary.json" / "toy.safetensors")
