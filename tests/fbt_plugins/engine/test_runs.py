"""Whole runs at miniature scale: files, resume, precision, and what must never change."""

import json
from pathlib import Path

import pytest
import timm
import torch
from conftest import CNN, RESMLP, VIT
from runs import Build, run
from safetensors.torch import load_file

from fbt_plugins.config.loading import load_config
from fbt_plugins.engine.device import slowdown
from fbt_plugins.engine.hooks import run_tables as screen
from fbt_plugins.engine.hooks.checkpoints import find_resume
from fbt_plugins.engine.runner import DistillRunner


def test_a_run_leaves_everything_behind(config: Build, whole: DistillRunner) -> None:
    folder = Path(whole.work_dir)
    summary = json.loads((folder / "summary.json").read_text())
    for key in ("student_top1", "teacher_top1", "fusion_top1"):
        assert 0 <= summary[key] <= 100
    assert summary["split"] == "test" and summary["seed"] == 3 and summary["versions"]["torch"] == torch.__version__
    assert 1 <= summary["best_epoch"] <= 3
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["iter"] for r in records if "train/loss" in r] == [2, 4, 6, 8, 10, 12]
    assert {"val/student_top1", "val/teacher_top1", "val/fusion_top1"} <= records[-1].keys() | records[-2].keys()
    assert {
        f"train/{e}/{s}" for e in ("teacher_to_student", "fusion_to_student") for s in ("feature", "logit")
    } <= records[0].keys()
    again = load_config(folder / "config.py")
    assert again.model.to_dict() == config().model.to_dict()


def test_the_student_file_is_a_plain_timm_model(whole: DistillRunner) -> None:
    path = Path(whole.work_dir) / "student.safetensors"
    student = timm.create_model(
        "resmlp_s4_patch4_32", num_classes=10, embed_dim=16, num_blocks=4, checkpoint_path=str(path)
    ).eval()
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(student(images), whole.model.student.net.eval()(images))
    assert all(not k.startswith("net.") for k in load_file(path))


def test_the_student_file_can_teach(config: Build, whole: DistillRunner) -> None:
    path = Path(whole.work_dir) / "student.safetensors"
    taught = config("second", **{"model.teacher.name": "resmlp_s4_patch4_32"})
    taught.model.teacher = dict(RESMLP, checkpoint=str(path))
    teacher = DistillRunner.from_cfg(taught).model.teacher
    assert torch.equal(teacher.net.head.weight, load_file(path)["head.weight"])


def test_checkpoints_are_plain_and_hold_no_teacher(whole: DistillRunner) -> None:
    path, checkpoint = find_resume(Path(whole.work_dir), 4)
    assert path.name == "epoch_3.pth"  # read with weights_only=True
    assert {"meta", "state_dict", "optimizer", "param_schedulers"} <= checkpoint.keys()
    assert not any("teacher" in k and "edges" not in k for k in checkpoint["state_dict"])
    weights = sum(v.numel() for v in checkpoint["state_dict"].values())
    own = sum(v.numel() for v in whole.model.state_dict().values())
    assert weights == own
    assert len(list(Path(whole.work_dir).glob("*.pth"))) == 2  # the newest and the best
    assert not list(Path(whole.work_dir).glob(".*.tmp"))


@pytest.mark.parametrize("student", [VIT, CNN], ids=lambda c: c["name"])
def test_a_run_starts_from_the_weights_that_it_was_given(config: Build, tmp_path: Path, student: dict) -> None:
    """mmengine's Runner would call timm's init_weights here."""
    torch.manual_seed(11)
    net = timm.create_model(
        **{"model_name": student["name"]}, **{k: v for k, v in student.items() if k not in ("type", "name")}
    )
    torch.save(net.state_dict(), tmp_path / "pretrained.pth")
    settings = config()
    settings.model.student = dict(student, checkpoint=str(tmp_path / "pretrained.pth"))
    settings.optim_wrapper.optimizer = dict(type="SGD", lr=0.0)
    settings.train_cfg.max_epochs = 1
    runner = run(settings)
    for name, value in net.named_parameters():
        assert torch.equal(value, dict(runner.model.student.net.named_parameters())[name]), name


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains_on_a_cpu(config: Build, precision: str) -> None:
    runner = run(config(**{"optim_wrapper.precision": precision, "train_cfg.max_epochs": 1}))
    assert all(torch.isfinite(p).all() and p.dtype == torch.float32 for p in runner.model.parameters())


def test_a_precision_that_is_slow_here_is_a_loud_warning(
    config: Build, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    assert slowdown(torch.bfloat16, cpu) > 0 and slowdown(torch.float32, cpu) == 1
    for factor, told in ((51.4, True), (1.9, False)):
        monkeypatch.setattr(screen, "slowdown", lambda dtype, device, factor=factor: factor)
        run(config(f"run_{told}", **{"optim_wrapper.precision": "bf16", "train_cfg.max_epochs": 1}))
        assert ("bf16 takes 51 times as long as fp32" in capsys.readouterr().out) == told


def test_plain_training_makes_a_teacher(config: Build) -> None:
    options = {f"model.{k}": None for k in ("teacher", "fusion", "feature_loss", "logit_loss")}
    runner = run(config(**options, **{"model.edges": [], "train_cfg.max_epochs": 1}))
    summary = json.loads((Path(runner.work_dir) / "summary.json").read_text())
    assert "student_top1" in summary and "teacher_top1" not in summary


def test_iterations_instead_of_epochs(config: Build) -> None:
    settings = config()
    settings.train_cfg = dict(by_epoch=False, max_iters=6, val_interval=3)
    settings.param_scheduler = [dict(type="ConstantLR", factor=1.0, by_epoch=False)]
    settings.default_hooks.checkpoint.update(by_epoch=False, interval=3)
    runner = run(settings)
    assert runner.iter == 6 and (Path(runner.work_dir) / "iter_6.pth").is_file()


def test_a_teacher_near_chance_is_a_loud_warning(config: Build, capsys: pytest.CaptureFixture[str]) -> None:
    run(config(**{"train_cfg.max_epochs": 1}))
    out = capsys.readouterr().out
    assert "THE TEACHER IS NEAR CHANCE" in out and out.index("NEAR CHANCE") < out.index("epoch 1/1")
