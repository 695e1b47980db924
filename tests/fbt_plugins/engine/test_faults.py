"""What goes wrong in a run: one line, and a checkpoint to go on from."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import CNN
from PIL import Image
from runs import Build, assert_equal, assert_same, run
from torch import Tensor, nn

from fbt_plugins import LOSSES, Batch, Knowledge
from fbt_plugins.engine.check import check_config
from fbt_plugins.engine.checkpoints.files import find_resume, read_checkpoint
from fbt_plugins.engine.faults import _known, in_one_line
from fbt_plugins.engine.hooks.checkpoints import AtomicCheckpointHook
from fbt_plugins.engine.hooks.loss_guard import LossGuard, NotFinite
from fbt_plugins.engine.optim.wrapper import AlwaysOverflows
from fbt_plugins.engine.processes import allow_open_files
from fbt_plugins.engine.runner import DistillRunner
from fbt_plugins.errors import ConfigError, FBTError

PLANTED = {"at": -1, "calls": 0}


class _BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * float("inf")


class PlantedLoss(nn.Module):
    """Mean squared logits, which break at one step: the value, the value only, or the gradient only."""

    def __init__(self, kind: str = "value") -> None:
        super().__init__()
        self.kind = kind

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        value = student.logits.square().mean()
        broken, PLANTED["calls"] = PLANTED["calls"] == PLANTED["at"], PLANTED["calls"] + 1
        if not broken:
            return value
        if self.kind == "gradient":
            return _BadGradient.apply(value)
        return value * float("nan") if self.kind == "value" else value + float("nan")


@pytest.fixture
def planted() -> Iterator[None]:
    LOSSES.register_module(name="PlantedLoss", module=PlantedLoss)
    PLANTED.update(at=-1, calls=0)
    yield
    LOSSES.module_dict.pop("PlantedLoss")


def edges(kind: str) -> dict[str, Any]:
    return {
        "model.edges": [
            "teacher_to_student",
            "teacher_to_fusion",
            dict(name="fusion_to_student", feature_loss=None, logit_loss=dict(type="PlantedLoss", kind=kind)),
        ]
    }


@pytest.mark.parametrize(
    "clip", [dict(max_norm=5.0), pytest.param(None, marks=pytest.mark.slow)], ids=["clipped", "unclipped"]
)
def test_the_first_loss_that_is_not_finite_stops_the_run_before_its_update(
    config: Build, planted: None, clip: dict[str, float] | None
) -> None:
    """The checkpoint is the one of a run that stopped before the bad step; without the cause, it ends the same."""
    options = {
        "optim_wrapper.clip_grad": clip,
        "default_hooks.progress.interval": 4,
        "param_scheduler": [
            dict(type="LinearLR", start_factor=0.1, end=8, by_epoch=False),
            dict(type="StepLR", step_size=1, gamma=0.9),
        ],
    }
    whole = run(config("whole", **edges("value"), **options))
    for kind in ("value", "value only", "gradient"):
        PLANTED.update(at=5, calls=0)  # the sixth iteration, read two later
        name = "the gradient" if kind == "gradient" else "the loss fusion_to_student/logit"
        with pytest.raises(
            FBTError, match=rf"{name} was (nan|inf) at iteration 6; .*epoch_1_iter_5.pth is from before"
        ) as error:
            run(config(kind, **edges(kind), **options))
        assert len(str(error.value).splitlines()) == 1
        PLANTED.update(at=-1)
        assert_same(whole, run(config(kind, resume=True, **edges(kind), **options)), "epoch_3.pth")


def test_the_guard_needs_no_progress_display(config: Build, planted: None) -> None:
    """Nobody shows the losses, and the run ends all the same: one line, and a checkpoint from before the bad step."""
    options = {**edges("value"), "default_hooks.progress": None}
    whole = run(config("whole", **options))
    PLANTED.update(at=5, calls=0)
    with pytest.raises(
        FBTError, match=r"fusion_to_student/logit was nan at iteration 6; .*epoch_1_iter_5.pth is from before"
    ) as e:
        run(config("bad", **options))
    assert len(str(e.value).splitlines()) == 1
    PLANTED.update(at=0, calls=0)  # the same iteration once more: it is the first of the run that goes on
    says = (
        r"nan at iteration 6; .*epoch_1_iter_5.pth is whole; from there the same settings come to it again: mend that"
    )
    with pytest.raises(FBTError, match=says):
        run(config("bad", resume=True, **options))
    PLANTED.update(at=-1)
    again = run(config("bad", resume=True, **options))
    ended = (read_checkpoint(Path(r.work_dir) / "epoch_3.pth") for r in (whole, again))
    first, second = ({k: v for k, v in c.items() if k not in ("meta", "message_hub")} for c in ended)
    assert_equal(first, second, "checkpoint")


def test_a_validation_looks_at_the_losses_first(config: Build, planted: None, tmp_path: Path) -> None:
    """Else its model, whose statistics may be broken, could be saved as the best."""
    seldom = {"default_hooks.checkpoint.by_epoch": False, "default_hooks.checkpoint.interval": 100}
    PLANTED.update(at=2, calls=0)
    with pytest.raises(
        FBTError, match=r"fusion_to_student/logit was nan at iteration 3; .*epoch_0_iter_2.pth is from before"
    ):
        run(config("run", **edges("value"), **seldom, **{"default_hooks.progress.interval": 100}))
    assert not list((tmp_path / "run").glob("best_*.pth"))


def test_a_run_that_saves_nothing_still_stops(config: Build, planted: None) -> None:
    PLANTED.update(at=2, calls=0)
    with pytest.raises(FBTError, match=r"logit was nan at iteration 3; .*nothing was saved \(default_hooks.checkpoint"):
        run(config("run", **edges("value"), **{"default_hooks.checkpoint": None}))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"default_hooks.loss_guard": None}, "default_hooks: unknown key 'loss_guard'"),
        ({"custom_hooks": [dict(type="LossGuard")]}, "custom_hooks.0.type: no hook 'LossGuard'"),
    ],
)
def test_no_config_can_name_the_guard(config: Build, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        check_config(config("run", **options))
    assert len(error.value.problems) == 1


def test_fp16_lets_gradients_overflow_but_not_losses(config: Build, planted: None) -> None:
    options = {"optim_wrapper.precision": "fp16"}
    PLANTED.update(at=5, calls=0)
    run(config("gradient", **edges("gradient"), **options))
    PLANTED.update(at=5, calls=0)
    with pytest.raises(FBTError, match="fusion_to_student/logit was nan at iteration 6"):
        run(config("value", **edges("value"), **options))


def test_with_accumulated_batches_their_whole_group_is_taken_back(config: Build, planted: None) -> None:
    options = {**edges("value"), "optim_wrapper.accumulative_counts": 2}
    PLANTED.update(at=7, calls=0)
    with pytest.raises(FBTError, match=r"at iteration 8; .*epoch_1_iter_6.pth is from before"):
        run(config("bad", **options))


@pytest.mark.slow
def test_nothing_is_saved_whose_statistics_are_from_after_the_bad_step(config: Build, planted: None) -> None:
    """The weights are from before it, the statistics are not: one goes on from the last checkpoint."""
    options = {**edges("value"), **{f"model.student.{key}": value for key, value in CNN.items()}}
    whole = run(config("whole", **options))
    PLANTED.update(at=6, calls=0)
    with pytest.raises(FBTError, match=r"at iteration 7; .*; .*epoch_1.pth is whole; from there the same s"):
        run(config("run", **options))
    PLANTED.update(at=-1)
    assert_same(whole, run(config("run", resume=True, **options)), "epoch_3.pth")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS], ids=["full", "read-only"])
def test_a_disk_that_takes_no_more(
    config: Build, whole: DistillRunner, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    runner = DistillRunner.from_cfg(config("run"))
    fsync = os.fsync

    def full(handle: int) -> None:
        if runner.iter >= 8:
            raise OSError(number, os.strerror(number))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FBTError, match=rf"{os.strerror(number)}.*epoch_1.pth is whole; go on with --resume"):
        runner.train()
    assert not list(Path(runner.work_dir).glob(".*.tmp"))
    monkeypatch.setattr(os, "fsync", fsync)
    assert_same(whole, run(config("run", resume=True)), "epoch_3.pth")


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_an_image_that_disappears(config: Build, tmp_path: Path, workers: int) -> None:
    for split, count in (("train", 8), ("val", 2)):
        for label in range(2):
            folder = tmp_path / "images" / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (32, 32), (40 * label, 9 * i, 0)).save(folder / f"{i}.png")
    sizes = {f"model.{role}.num_classes": 2 for role in ("student", "teacher")} | {"train_dataloader.batch_size": 4}
    sizes |= {"val_dataloader.batch_size": 4}
    settings = config("run", **sizes, **{"train_dataloader.num_workers": workers})
    for split in ("train", "val"):
        source = dict(type="ImageFolder", split=split, root=str(tmp_path / "images"), transforms=[])
        settings[f"{split}_dataloader"].dataset = source
    for part in ("dataloader", "cfg", "evaluator"):
        settings[f"test_{part}"] = None
    runner = DistillRunner.from_cfg(settings)
    step = runner.model.train_step

    def losing(*args: Any, **kwargs: Any) -> Any:
        if runner.iter == 5:
            for path in (tmp_path / "images" / "train" / "class1").iterdir():
                path.unlink()
        return step(*args, **kwargs)

    runner.model.train_step = losing
    with pytest.raises(FBTError, match=r"png is no readable image.*epoch_[12].pth is whole; go on with --resume"):
        runner.train()
    assert find_resume(Path(runner.work_dir), 4)[0].name in ("epoch_1.pth", "epoch_2.pth")  # workers read ahead


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
            "the GPU's memory is full; lower train_dataloader",
        ),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
            "a worker process is gone .*lower num_w",
        ),
    ],
)
def test_memory_that_is_full(config: Build, error: RuntimeError, says: str) -> None:
    runner = DistillRunner.from_cfg(config("run"))
    step = runner.model.train_step

    def failing(*args: Any, **kwargs: Any) -> Any:
        if runner.iter == 5:
            raise error
        return step(*args, **kwargs)

    runner.model.train_step = failing
    with pytest.raises(FBTError, match=says + ".*epoch_1.pth is whole; go on with --resume"):
        runner.train()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            RuntimeError(
                "Caught RuntimeError in DataLoader worker process 0.\nstack expects each tensor to be equal size"
            ),
            "the images of a batch have different sizes; add dict(type='Resize'",
        ),
        (
            ValueError("Expected more than 1 value per channel when training, got input size torch.Size([1, 8, 1, 1])"),
            "a batch of one image cannot train BatchNorm: set train_dataloader.drop_last=True",
        ),
        (ValueError("another"), None),
    ],
)
def test_what_data_do_to_a_batch_is_said_in_words(error: Exception, says: str | None) -> None:
    known = _known(error, distributed=False)
    assert known is None if says is None else says in str(known)


def fault(error: Exception, **parts: Any) -> str:
    """What a run whose checkpoint hook and parts are these says of an error."""
    runner: Any = SimpleNamespace(distributed=False, **parts)
    with pytest.raises(FBTError) as said, in_one_line(runner):
        raise error
    return str(said.value)


def test_a_checkpoint_is_called_whole_only_where_it_is(tmp_path: Path) -> None:
    hook = AtomicCheckpointHook()
    hook.saved, path = 4, tmp_path / "epoch_1.pth"
    hook.last_ckpt = str(path)
    error = OSError(errno.ENOSPC, "No space left on device")
    assert "nothing to go on from is left" in fault(error, hook=lambda _: hook)
    for value, says in ((1.0, "is whole; go on with --resume"), (float("nan"), "what is in it is not finite")):
        torch.save(dict(meta={}, message_hub={}, state_dict={"weight": torch.tensor([value])}), path)
        assert says in fault(error, hook=lambda _: hook)


def test_fp16_that_never_updates_is_named() -> None:
    model = nn.Linear(1, 1)
    text = fault(AlwaysOverflows(20, [model.bias]), hook=lambda _: None, distiller=model)
    assert "in 20 updates in a row, and none of them was made (first of bias); try --amp bf16" in text


def test_only_weights_are_saved_after_a_loss_that_was_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    hook, wrapper = AtomicCheckpointHook(), SimpleNamespace(group_start=lambda iteration: iteration)
    monkeypatch.setattr(hook, "save_now", lambda runner, epoch, iteration: saved.append(iteration))
    guard, bank = LossGuard(), torch.zeros(3, dtype=torch.long)
    model: Any = nn.Linear(2, 2)
    model.register_buffer("bank", bank, persistent=False)
    parts: Any = dict(hook=lambda _: hook, train_loop=None, rewind=lambda *_: None, optim_wrapper=wrapper)
    parts |= dict(distiller=model, has_moved=lambda: guard.has_moved(SimpleNamespace(**parts)))
    guard.before_train(SimpleNamespace(max_iters=9, **parts))
    assert "is from before it; from there the same settings come to it again: mend that loss" in fault(
        NotFinite("task", float("nan"), 4), **parts
    ) and saved == [4]
    bank[1] = 7
    assert "nothing was saved yet; lower the learning rate" in fault(
        NotFinite("task", float("nan"), 5), **parts
    ) and saved == [4]


def test_a_bug_of_a_plugin_comes_as_it_is(config: Build) -> None:
    runner = DistillRunner.from_cfg(config("run"))
    runner.model.train_step = lambda *args, **kwargs: [][0]
    with pytest.raises(IndexError):
        runner.train()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "memory is full, or limited"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
            "memory is full",
        ),
        (RuntimeError("can't start new thread"), "memory is full, or limited"),
        (RuntimeError("[gloo] Timed out waiting 1800000ms for recv operation to complete"), "another process .* hangs"),
        (RuntimeError("NCCL watchdog: collective operation timeout: WorkNCCL(SeqNum=3)"), "another process .* hangs"),
    ],
)
def test_what_the_system_refuses_is_one_line(error: Exception, says: str) -> None:
    run: Any = SimpleNamespace(hook=lambda kind: None, distributed=True)
    with pytest.raises(FBTError, match=f"^{says}.*; nothing was saved yet$") as caught, in_one_line(run):
        raise error
    assert len(caught.value.lines()) == 1


def test_too_few_open_files_are_told_before_torch_waits_for_ever() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        few = len(list(Path("/dev/fd").iterdir())) + 5
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, limits[1]))
        allow_open_files(2)
        assert few < resource.getrlimit(resource.RLIMIT_NOFILE)[0] < few + 50  # raised, as far as needed
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    with pytest.raises(FBTError, match=r"^num_workers: 10000000 workers need about .* open files, .* \(ulimit -n\)"):
        allow_open_files(10_000_000)
