"""Runs without classifiers and without labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import RESMLP, VIT
from mmengine.config import Config
from PIL import Image
from runs import run
from safetensors.torch import load_file

from fbt_plugins.config.loading import load_config
from fbt_plugins.engine.check import check_config
from fbt_plugins.engine.hooks.topk import evaluate
from fbt_plugins.engine.runner import DistillRunner
from fbt_plugins.errors import ConfigError

TEACHER, STUDENT = VIT | dict(num_classes=0), RESMLP | dict(num_classes=0)
TRANSFORMS = [dict(type="Resize", size=(32, 32)), dict(type="ToTensor")]
"""Of all images here."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images of two colours, in folders "plain" (no labels) and "sorted" (a folder for each class)."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(24):
        pixels = rng.integers(0, 120, (40, 40, 3), dtype=np.uint8)
        pixels[..., i % 2] += 120
        for folder in ("plain", f"sorted/{'red' if i % 2 == 0 else 'green'}"):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / folder / f"{i}.png")
    return root


def build(photos: Path, folder: Path, **options: Any) -> Config:
    """The config of a run of FBT on images without labels, measured by retrieval agreement."""
    root = Path(__file__).parents[3] / "configs" / "_base_" / "adamw_cosine.py"
    data = lambda train: dict(  # noqa: E731
        batch_size=8,
        sampler=dict(type="SeededSampler", shuffle=train),
        dataset=dict(type="Images", root=str(photos / "plain"), transforms=TRANSFORMS),
    )
    whole = dict(
        _base_=[str(root)],
        model=dict(
            type="Distiller",
            teacher=TEACHER,
            student=STUDENT,
            fusion=dict(type="L2GFusion", splice="auto"),
            edges=["teacher_to_student", "teacher_to_fusion", "fusion_to_student"],
            feature_loss=dict(type="InfoNCELoss"),
        ),
        train_dataloader=data(True),
        val_dataloader=data(False),
        val_cfg={},
        val_evaluator=dict(type="Retrieval"),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        param_scheduler=[],
        device="cpu",
    )
    file = folder / "encoders.py"
    file.write_text("\n".join(f"{key} = {value!r}" for key, value in whole.items()))
    loaded = load_config(file, options)
    loaded.work_dir = str(folder / "run")
    return loaded


def test_an_encoder_teaches_an_encoder_without_labels(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It trains, is validated, chooses its best epoch, and leaves a summary and a student that timm loads."""
    config = build(photos, tmp_path, **{"default_hooks.checkpoint.save_best": "fusion_retrieval"})
    check_config(config)
    runner = run(config)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["measure"] == "retrieval" and summary["best_epoch"] in (1, 2)
    assert {"student_retrieval", "fusion_retrieval"} <= summary.keys() and "teacher_retrieval" not in summary
    assert summary["best_validation_fusion_retrieval"] == summary["fusion_retrieval"]
    assert [row["role"] for row in summary["models"]] == ["student", "teacher", "fusion"]
    assert "validation retrieval agreement: student" in (shown := capsys.readouterr().out) and "24 images" in shown
    arguments = {k: v for k, v in STUDENT.items() if k not in ("type", "name")}
    net = timm.create_model(STUDENT["name"], **arguments).eval()
    net.load_state_dict(load_file(tmp_path / "run" / "student.safetensors"))
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(net(x), runner.distiller.student.eval()(x))


def test_what_needs_logits_or_labels_refuses_an_encoder_in_one_line(photos: Path, tmp_path: Path) -> None:
    """At --check, before any image is read."""

    def refusal(**options: Any) -> str:
        with pytest.raises(ConfigError) as error:
            check_config(build(photos, tmp_path, **options))
        return str(error.value)

    edges = [
        dict(name="teacher_to_student", logit_loss=dict(type="KDLoss")),
        dict(name="teacher_to_fusion", feature_loss=dict(type="RSDLoss", of="logits")),
        dict(name="fusion_to_student", gate="agreement"),
    ]
    metrics = [dict(type="LinearProbe"), dict(type="KNN", bank=loader(photos / "plain"))]
    task = {"model.task_loss": dict(type="CrossEntropyLoss")}
    found = refusal(**{"model.edges": edges, "val_evaluator": metrics, **task})
    for what in ("KDLoss", "CrossEntropyLoss"):
        assert f"{what} needs logits, and the student has no classifier (num_classes=0)" in found
    for what in (
        "RSDLoss needs logits",
        "gate='agreement' needs logits",
        "LinearProbe needs labels",
        "KNN needs labels",
    ):
        assert what in found
    found = refusal(**{"val_evaluator": dict(type="TopK")})
    assert "TopK needs logits, and the student has no classifier (num_classes=0): measure with KNN" in found
    alone = {"model.teacher": None, "model.fusion": None, "model.edges": [], "model.feature_loss": None, **task}
    labelled = {"model.student": RESMLP | dict(num_classes=2), "train_dataloader": loader(photos / "sorted")}
    labelled["train_dataloader"]["sampler"] = dict(type="SeededSampler", shuffle=True)
    assert "Retrieval compares with a teacher, and there is none" in refusal(**alone, **labelled)


def loader(root: Path) -> dict[str, Any]:
    """Of the images of a folder; "sorted" has labels."""
    labels = "folders" if root.name == "sorted" else None
    return dict(batch_size=8, dataset=dict(type="Images", root=str(root), labels=labels, transforms=TRANSFORMS))


def test_frozen_features_are_measured_with_labelled_images(photos: Path, tmp_path: Path) -> None:
    """Student, teacher and fusion model side by side, with a bank or without; the teacher may have other classes."""
    colours = loader(photos / "sorted") | dict(sampler=dict(type="SeededSampler", shuffle=False))
    metrics = [dict(type="KNN", k=3), dict(type="LinearProbe"), dict(type="KNN", bank=loader(photos / "sorted"))]
    options = {"model.teacher": VIT, "val_dataloader": colours}
    runner = DistillRunner.from_cfg(build(photos, tmp_path, **options, val_evaluator=metrics[:2]))
    found = evaluate(runner.model, runner.val_dataloader, runner.val_loop.evaluator, runner.distiller.names)
    assert found.keys() == {f"{model}_{key}" for model in runner.distiller.names for key in ("knn", "probe")}
    assert all(value > 80 for value in found.values()), found
    both = [metrics[2], dict(type="LinearProbe", bank=metrics[2]["bank"])]
    with_bank = build(photos, tmp_path, **options, val_evaluator=both)
    check_config(with_bank)
    runner = DistillRunner.from_cfg(with_bank)
    assert runner.teacher_metrics["teacher_knn"] > 80 and runner.teacher_metrics["teacher_probe"] > 80
    banks = [metric.bank_loader for metric in runner.val_loop.evaluator.metrics]
    sample, seen = runner.distiller.sample, []
    runner.distiller.sample = lambda batch, *rest: seen.append(len(batch["labels"])) or sample(batch, *rest)
    evaluate(runner.model, runner.val_dataloader, runner.val_loop.evaluator, ["student"])
    assert len(banks[0]) == 3 and len(seen) == 3 + len(runner.val_dataloader)  # one bank is looked at once


def test_a_metric_that_is_there_twice_is_refused(photos: Path, tmp_path: Path) -> None:
    """Both would be called alike."""
    twice = [dict(type="KNN", k=1), dict(type="KNN", k=5)]
    colours = loader(photos / "sorted") | dict(sampler=dict(type="SeededSampler", shuffle=False))
    with pytest.raises(ConfigError, match=r"val_evaluator: KNN is there twice, and both give student_knn: keep one$"):
        check_config(build(photos, tmp_path, val_dataloader=colours, val_evaluator=twice))


def test_a_bank_of_images_of_another_size_is_refused(photos: Path, tmp_path: Path) -> None:
    """At --check where transforms tell, and else when it is opened; batches of one image may have any size."""
    colours = loader(photos / "sorted") | dict(sampler=dict(type="SeededSampler", shuffle=False))
    bank = loader(photos / "sorted")
    bank["dataset"]["transforms"] = [dict(type="Resize", size=(24, 40)), dict(type="ToTensor")]
    says = "val_evaluator.bank: its images are 24x40 pixels, and those of val_dataloader 32x32: give both the same tran"
    small = build(photos, tmp_path, val_dataloader=colours, val_evaluator=dict(type="LinearProbe", bank=bank))
    with pytest.raises(ConfigError, match=says):
        check_config(small)
    with pytest.raises(ConfigError, match=says):
        DistillRunner.from_cfg(small)
    small.val_evaluator.bank.batch_size = 1
    check_config(small)


def test_an_encoder_is_read_from_the_teacher_cache(photos: Path, tmp_path: Path) -> None:
    """Whose files then hold features and no logits."""
    config = build(photos, tmp_path, teacher_cache=dict(views=1, path=str(tmp_path / "cache")))
    for part in ("dataloader", "cfg", "evaluator"):
        config[f"val_{part}"] = None
    config.train_cfg.max_epochs = 1
    run(config)
    assert (tmp_path / "cache" / "features.npy").is_file() and not (tmp_path / "cache" / "logits.npy").exists()
