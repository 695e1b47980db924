"""A run that was stopped anywhere and resumed ends with the bits of one that never stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Build, assert_equal, assert_same, run, run_until

from fbt_plugins.engine.checkpoints.files import find_resume, read_checkpoint, training_checkpoints
from fbt_plugins.engine.checkpoints.memories import memories, restore_memories
from fbt_plugins.engine.runner import DistillRunner
from fbt_plugins.errors import FBTError
from fbt_plugins.models.weights import save_plain

MIDDLE = {"default_hooks.checkpoint.by_epoch": False, "default_hooks.checkpoint.interval": 3}
ITERATIONS = {
    "train_cfg": dict(by_epoch=False, max_iters=12, val_interval=5),
    "param_scheduler": [dict(type="LinearLR", start_factor=0.1, by_epoch=False, end=10)],
    "default_hooks.checkpoint.interval": 3,
}
BANKS = {"model.feature_loss": dict(type="CRDLoss", dim=4, negatives=16), "ema": dict(decay=0.9)}
_WAITING = dict(begin=0.3)
SCHEDULES = {
    "model.edges": [
        dict(name="teacher_to_student", end=0.8, **_WAITING),
        "teacher_to_fusion",
        dict(name="fusion_to_student", gate="agreement", ramp=0.5, **_WAITING),
    ],
    "model.task_loss.begin": 0.3,
}


BF16 = {"optim_wrapper.precision": "bf16"}


MIXUP = {"data_preprocessor": dict(mixup_alpha=0.8, cutmix_alpha=1.0)}
CASES: dict[str, dict[str, Any]] = {
    "epochs": {},
    "middle of an epoch, bf16, mixup, memory banks, averaged": {**MIDDLE, **BF16, **MIXUP, **BANKS},
    "accumulated iterations, edges that begin, rise and end": {
        **ITERATIONS,
        **SCHEDULES,
        "optim_wrapper.accumulative_counts": 4,  # the first validation, a new best, is in the middle of a group
    },
    "a splice drawn in each step, from a tail of its own, averaged": {
        **MIDDLE,
        "model.fusion": dict(type="ConvL2G", splice=["S1-3+T4", "S1-2+T3-4", "S1+T2-4"], tail="copied"),
        "ema.decay": 0.9,
    },
}
ALONE: dict[str, dict[str, Any]] = {  # what of these it is, should one fail, and what takes long
    "middle of an epoch": MIDDLE,
    "iterations": ITERATIONS,
    "two workers": {**MIDDLE, "train_dataloader.num_workers": 2},
    "persistent workers": {
        **MIDDLE,
        "train_dataloader.num_workers": 2,
        "train_dataloader.persistent_workers": True,
    },
    "accumulation": {**MIDDLE, "optim_wrapper.accumulative_counts": 3, "default_hooks.checkpoint.interval": 2},
    "accumulated iterations": {**ITERATIONS, "optim_wrapper.accumulative_counts": 5},
    "bf16": {**MIDDLE, **BF16},
    "fp16": {**MIDDLE, "optim_wrapper.precision": "fp16"},
    "BatchNorm": {**MIDDLE, "model.student.name": "resnet18", "model.student.num_classes": 10},
    "mixup": {**MIDDLE, **MIXUP},
    "memory banks": {**MIDDLE, **BANKS},
    "edges that begin, rise and end": {**MIDDLE, **SCHEDULES, "optim_wrapper.accumulative_counts": 2},
    "the same in iterations": {**ITERATIONS, **SCHEDULES},
    "clipping, and a loss interval that does not divide": {**MIDDLE, "default_hooks.progress.interval": 5},
}


@pytest.mark.parametrize(
    "options",
    [
        *(pytest.param(options, id=name) for name, options in CASES.items()),
        *(pytest.param(options, id=name, marks=pytest.mark.slow) for name, options in ALONE.items()),
    ],
)
def test_resumed_is_uninterrupted(
    config: Build, tmp_path: Path, options: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    """Killed twice, each time resumed from a folder that was moved."""
    whole = run(config("whole", **options)) if options else request.getfixturevalue("whole")
    run_until(config("first", **options), 6)
    (tmp_path / "first").rename(tmp_path / "second")
    run_until(config("second", resume=True, **options), 11)
    (tmp_path / "second").rename(tmp_path / "third")
    resumed = run(config("third", resume=True, **options))
    last = "iter_12.pth" if "default_hooks.checkpoint.interval" in options else "epoch_3.pth"
    assert_same(whole, resumed, last)
    assert len(list((tmp_path / "third").glob("best_*.pth"))) == 1
    assert len(training_checkpoints(tmp_path / "third", 4)) == 1


def test_only_checkpoints_to_resume_from_have_what_losses_remember(config: Build, tmp_path: Path) -> None:
    runner = run(config("run", **BANKS, **{"train_cfg.max_epochs": 1}))
    banks = memories(runner.model)
    assert {name.rsplit(".", 1)[1] for name in banks} == {"bank_student", "bank_teacher", "estimated", "log_mean"}
    last, best = (read_checkpoint(next((tmp_path / "run").glob(name))) for name in ("epoch_1.pth", "best_*.pth"))
    assert_equal(last["memories"], banks, "memories")
    assert "memories" not in best
    assert not any("bank" in name for name in (*best["state_dict"], *last["state_dict"], *last["trained_weights"]))
    banks.popitem()
    with pytest.raises(FBTError, match=r"another run's: .* is None in the checkpoint"):
        restore_memories(runner.model, banks)


def test_a_validation_that_was_cut_off_is_made_again(config: Build, whole: DistillRunner) -> None:
    broken = DistillRunner.from_cfg(config("broken"))
    broken.model.val_step = lambda *data: 1 / 0
    with pytest.raises(ZeroDivisionError):
        broken.train()
    path = Path(broken.work_dir) / "epoch_1.pth"
    checkpoint = read_checkpoint(path)
    checkpoint["message_hub"]["runtime_info"]["seconds"] += 1000
    save_plain(path, checkpoint)
    assert_same(whole, run(config("broken", resume=True)), "epoch_3.pth")
    summary = json.loads((path.parent / "summary.json").read_text())
    assert 1000 < summary["seconds"] < 2000  # of all sessions


def test_the_first_batch_that_is_not_read_again(config: Build, tmp_path: Path) -> None:
    """Going on in the middle of an epoch reads none of the images that were trained on."""
    run_until(config("run", **MIDDLE), 7)
    resumed = DistillRunner.from_cfg(config("run", resume=True, **MIDDLE))
    seen: list[int] = []
    step = resumed.model.train_step
    resumed.model.train_step = lambda data, **kwargs: (seen.extend(data["index"].tolist()), step(data, **kwargs))[1]
    resumed.train()
    assert len(seen) == (12 - 6) * 8


def test_nothing_to_resume_is_said_and_auto_begins(
    config: Build,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(FBTError, match=r"--resume: no checkpoint in .*--resume auto"):
        run(config("none", resume=True))
    run(config("none", resume="auto", **{"train_cfg.max_epochs": 1}))
    assert "no checkpoint in" in capsys.readouterr().out
    again = run(config("none", resume="auto", **{"train_cfg.max_epochs": 2}))
    assert again.iter == 8 and "resume " in capsys.readouterr().out


def test_another_run_in_the_folder_is_set_aside(config: Build, whole: DistillRunner, tmp_path: Path) -> None:
    shutil.copytree(whole.work_dir, tmp_path / "run")
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").glob("[!.]*.*") if p.is_file()}
    exported = tmp_path / "run" / "export" / "student.onnx"
    exported.parent.mkdir()
    exported.write_text("the earlier run's")
    run_until(config("run", **{"randomness.seed": 4}), 6)
    aside = tmp_path / "run" / "earlier_1"
    assert {p.name: p.read_bytes() for p in aside.iterdir() if p.is_file()} == before
    assert not exported.exists() and (aside / "export" / exported.name).read_text() == "the earlier run's"
    assert find_resume(tmp_path / "run", 4)[0].name == "epoch_1.pth"  # not the earlier run's third


def test_a_validation_after_the_run_leaves_its_files_where_they_are(config: Build, tmp_path: Path) -> None:
    runner = run(config("run", **{"train_cfg.max_epochs": 1}))
    before = {p.name for p in (tmp_path / "run").iterdir()}
    assert runner.val()["student_top1"] >= 0
    assert {p.name for p in (tmp_path / "run").iterdir()} == before


def test_going_on_in_another_folder_ends_with_the_same_result(
    config: Build, whole: DistillRunner, tmp_path: Path
) -> None:
    """The best weights and their score come along: the last validation is not the best one."""
    last = read_checkpoint(Path(whole.work_dir) / "epoch_3.pth")
    info = last["message_hub"]["runtime_info"]
    summary = json.loads((Path(whole.work_dir) / "summary.json").read_text())
    assert info["best_score"] == summary["best_validation_student_top1"]
    run(config("other", resume=str(Path(whole.work_dir) / "epoch_3.pth")))
    again = json.loads((tmp_path / "other" / "summary.json").read_text())
    same = ("student_top1", "best_epoch", "best_iteration", "best_validation_student_top1")
    assert [again[key] for key in same] == [summary[key] for key in same]
    assert {p.name for p in (tmp_path / "other").glob("*.pth")} == {p.name for p in Path(whole.work_dir).glob("*.pth")}


def test_what_does_not_fit_the_checkpoint_is_refused(config: Build, tmp_path: Path) -> None:
    run_until(config("run"), 6)
    for options, reason in (
        ({"randomness.seed": 4}, "seed: 3 in the checkpoint, 4 here"),
        ({"train_dataloader.num_batch_per_epoch": 5}, "iterations per epoch: 4 in the checkpoint, 5 here"),
        ({"model.student.embed_dim": 24}, "not of this config's model"),
    ):
        with pytest.raises(FBTError, match=reason):
            run(config("run", resume=True, **options))
    best = next((tmp_path / "run").glob("best_*.pth"))
    with pytest.raises(FBTError, match="weights but no optimizer"):
        run(config("run", resume=str(best)))


def test_going_on_from_an_older_checkpoint(config: Build, whole: DistillRunner, tmp_path: Path) -> None:
    """Newer ones would be taken for the newest next time."""
    keep = {"default_hooks.checkpoint.max_keep_ckpts": -1}
    run(config("run", **keep))
    again = run(config("run", resume=str(tmp_path / "run" / "epoch_1.pth"), **keep))
    assert {p.name for p in (tmp_path / "run" / "earlier_1").iterdir()} == {"epoch_2.pth", "epoch_3.pth"}
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])


def test_a_run_removes_what_a_killed_one_had_begun_to_write(config: Build) -> None:
    runner = DistillRunner.from_cfg(config("run"))
    half, other = (Path(runner.work_dir) / name for name in (".epoch_1.pth.abc.tmp", "notes.tmp"))
    half.write_bytes(b"half"), other.write_bytes(b"mine")
    runner.load_or_resume()
    assert not half.exists() and other.exists()
