"""Whole runs at miniature scale: what they leave behind, and that how a step is computed changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from conftest import CNN, RESMLP, VIT
from runs import Build, curve, run
from safetensors.torch import load_file

from fbt_plugins.config.loading import load_config
from fbt_plugins.engine.hooks.checkpoints import find_resume
from fbt_plugins.engine.runner import DistillRunner
from fbt_plugins.errors import FBTError


def close(a: DistillRunner, b: DistillRunner) -> None:
    """The same losses but for rounding, and weights as near as AdamW leaves them."""
    losses = [
        [{k: v for k, v in r.items() if k.startswith("train/") and "lr" not in k} for r in curve(x)] for x in (a, b)
    ]
    for first, second in zip(*losses, strict=True):
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert value == pytest.approx(second[name], rel=1e-2, abs=1e-3), name


@pytest.mark.slow
def test_compiled_losses_are_the_same_losses(config: Build) -> None:
    options = {"train_cfg.max_epochs": 1, "val_dataloader": None, "val_cfg": None, "val_evaluator": None}
    compiled = run(config("compiled", **options, compile=dict(backend="aot_eager")))
    close(run(config("plain", **options)), compiled)
    assert "_orig_mod" not in " ".join(compiled.model.state_dict())


@pytest.mark.slow
def test_inductor_computes_the_same_losses(config: Build) -> None:
    close(run(config("plain")), run(config("compiled", compile=True)))


def test_what_cannot_be_compiled_ends_in_one_line(config: Build) -> None:
    with pytest.raises(FBTError, match=r"compile: it fails \(.*\); set compile=None; nothing was saved yet"):
        run(config("run", compile=dict(backend="no_such_backend")))


def test_channels_last_reaches_all_models_and_the_images(config: Build) -> None:
    models = {
        "model.student": dict(type="timm", name="resnet10t", num_classes=10, layers=(1, 1, 1, 1), channels=(8, 8, 8, 8))
    }
    last = DistillRunner.from_cfg(config("last", **models, channels_last=True))
    seen = []
    for model in last.model.models.values():
        model.net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        model.stages[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    last.train()
    weights = [p for m in last.model.models.values() for p in m.parameters() if p.ndim == 4 and p.shape[1:] > (1, 1, 1)]
    assert weights and seen
    for tensor in (*weights, *(x for x in seen if not x.is_meta)):  # shapes are found on copies without weights
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    close(run(config("plain", **models)), last)
    assert not Path(last.work_dir, "earlier_1").exists()


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
