"""When checkpoints are saved, which files stay, and what the best weights are."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch import nn

from fbt_plugins.engine.checkpoints.files import find_resume, read_checkpoint, set_aside, training_checkpoints
from fbt_plugins.engine.hooks.checkpoints import AtomicCheckpointHook, plain
from fbt_plugins.engine.hooks.topk import TopK
from fbt_plugins.errors import ConfigError, FBTError

LENGTH, EPOCHS = 7, 6


class Run:
    """What the hook sees of a run. Its weight is its iteration; its score is a function of that."""

    def __init__(self, folder: Path, epochs: bool = True, **options: Any) -> None:
        self.work_dir, self.iter, self.epoch = str(folder), 0, 0
        self.max_iters, self.max_epochs = LENGTH * EPOCHS, EPOCHS
        self.train_loop = object.__new__(EpochBasedTrainLoop if epochs else IterBasedTrainLoop)
        self.train_loop.val_interval = 5
        self.val_loop = SimpleNamespace(evaluator=SimpleNamespace(metrics=[TopK()]))
        self.train_dataloader = range(LENGTH)
        self.model = self.distiller = nn.Linear(1, 1)
        self.distiller.names = ["student"]
        info: dict[str, Any] = {}
        self.message_hub = SimpleNamespace(runtime_info=info, update_info=info.__setitem__)
        self.optim_wrapper = SimpleNamespace(should_update=lambda: True)
        self.check_losses = self.call_hook = lambda *_: None
        self.hook = AtomicCheckpointHook(**options)

    def begin(self, path: Path | None = None) -> Run:
        """Goes on from a checkpoint as the runner does."""
        folder, best = Path(self.work_dir), None
        if path is not None:
            checkpoint = read_checkpoint(path)
            self.iter, self.epoch = checkpoint["meta"]["iter"], checkpoint["meta"]["epoch"]
            info = checkpoint["message_hub"]["runtime_info"]
            for key in ("best_ckpt", "last_ckpt"):
                info |= {key: str(folder / Path(info[key]).name)} if key in info else {}
            self.message_hub.runtime_info.update(info)
            best = self.hook.best_so_far(self, path)  # type: ignore[arg-type]
        set_aside(folder, LENGTH, self.iter if path is not None and path.parent == folder else -1)
        if path is not None:
            self.hook.go_on(self, path, best)  # type: ignore[arg-type]
        self.hook.before_train(self)  # type: ignore[arg-type]
        self._end_epoch()
        return self

    def save_checkpoint(self, folder: str, name: str, meta: dict[str, int], backend_args: Any, **parts: bool) -> None:
        info = dict(self.message_hub.runtime_info)
        content: dict[str, Any] = dict(
            meta=meta, state_dict={"at": torch.tensor(self.iter)}, message_hub=dict(runtime_info=info)
        )
        torch.save(content | (dict(optimizer={}) if not parts else {}), Path(folder) / name)

    def step(self) -> None:
        self.hook.after_train_iter(self, 0)  # type: ignore[arg-type]
        self.iter += 1
        self._end_epoch()

    def _end_epoch(self) -> None:
        if isinstance(self.train_loop, EpochBasedTrainLoop) and self.iter == (self.epoch + 1) * LENGTH:
            self.hook.after_train_epoch(self)  # type: ignore[arg-type]
            self.epoch += 1

    def signal(self) -> None:
        self.hook.save_now(self, self.epoch, self.iter)  # type: ignore[arg-type]

    def validate(self) -> None:
        if isinstance(self.train_loop, EpochBasedTrainLoop) and self.iter % LENGTH:
            return  # such a loop does not do that
        score = float(self.iter * 37 % 41)
        self.hook.after_val_epoch(self, {"student_top1": score})  # type: ignore[arg-type]


def check(run: Run, kept: int) -> None:
    """What is saved is there, is what a resume takes, and has its best weights beside it."""
    folder, found = Path(run.work_dir), training_checkpoints(Path(run.work_dir), LENGTH)
    assert len(found) <= kept
    if run.hook.saved < 0:
        return
    assert Path(str(run.hook.last_ckpt)).is_file()
    path, checkpoint = find_resume(folder, LENGTH)
    assert checkpoint["meta"]["iter"] == run.hook.saved == found[-1][0], (path, found)
    info = checkpoint["message_hub"]["runtime_info"]
    if "best_ckpt" in info:
        best = read_checkpoint(folder / Path(info["best_ckpt"]).name)
        assert float(best["state_dict"]["at"] * 37 % 41) == info["best_score"]


@pytest.mark.parametrize("seed", range(20))
def test_no_order_of_signals_kills_epochs_and_iterations_loses_a_checkpoint(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    epochs, kept = draw.random() < 0.7, draw.choice((1, 1, 2, 3))

    def options() -> dict[str, Any]:  # may change between two starts
        by_epoch = draw.choice((None, False)) if epochs else None
        return dict(by_epoch=by_epoch, interval=draw.choice((1, 3, 5)), max_keep_ckpts=kept)

    run = Run(tmp_path, epochs, **options()).begin()
    for _ in range(60):
        if run.iter == run.max_iters:
            break
        act = draw.choice(("step", "step", "step", "signal", "kill", "validate"))
        if act in ("step", "validate"):
            getattr(run, act)()
        else:
            if act == "signal" and run.iter % LENGTH:
                run.signal()
                check(run, kept)
            newest = run.hook.saved
            last = find_resume(tmp_path, LENGTH)[0] if newest >= 0 else None
            run = Run(tmp_path, epochs, **options()).begin(last)
            assert run.iter == max(newest, 0)  # nothing that was saved is lost
            if draw.random() < 0.5:
                run.validate()
        check(run, kept)
    assert not list(tmp_path.glob("earlier_*/[ei]*.pth"))  # but best weights, where nothing to go on from was saved


def test_what_was_just_written_stays(tmp_path: Path) -> None:
    """A signal in the second epoch, then saves by iteration: once they counted as of an epoch before it."""
    run = Run(tmp_path, by_epoch=False, interval=3).begin()
    for _ in range(8):
        run.step()
    run.signal()
    run = Run(tmp_path, by_epoch=False, interval=3).begin(tmp_path / "epoch_1_iter_8.pth")
    run.step()
    assert [path.name for _, path in training_checkpoints(tmp_path, LENGTH)] == ["iter_9.pth"]
    (tmp_path / "epoch_1.pth").write_bytes((tmp_path / "iter_9.pth").read_bytes())
    assert find_resume(tmp_path, LENGTH)[0].name == "iter_9.pth"


def finished(folder: Path) -> Run:
    """Five epochs, the best of which is not the last: scores 13, 26, 39, 11, 24."""
    folder.mkdir()
    run = Run(folder).begin()
    for _ in range(5 * LENGTH):
        run.step()
        if run.iter % LENGTH == 0:
            run.validate()
    assert {path.name for path in folder.iterdir()} == {"epoch_5.pth", "best_student_top1_epoch_3.pth"}
    return run


@pytest.mark.parametrize("name", ["epoch_5.pth", "mine.pth"])
def test_best_weights_are_carried_over_from_another_folder(tmp_path: Path, name: str) -> None:
    finished(tmp_path / "old")
    (tmp_path / "old" / "epoch_5.pth").rename(tmp_path / "old" / name)
    (tmp_path / "new").mkdir()
    run = Run(tmp_path / "new").begin(tmp_path / "old" / name)
    check(run, 1)
    info = run.message_hub.runtime_info
    assert read_checkpoint(info["best_ckpt"])["state_dict"] == {"at": 3 * LENGTH} and info["best_score"] == 39


def test_best_weights_that_are_gone_are_refused_or_found_in_a_checkpoint(tmp_path: Path) -> None:
    finished(tmp_path / "run")
    last, best = tmp_path / "run" / "epoch_5.pth", tmp_path / "run" / "best_student_top1_epoch_3.pth"
    content = read_checkpoint(best)
    best.unlink()
    with pytest.raises(
        FBTError, match=r"the best weights so far, best_student_top1_epoch_3.pth, are gone; .*save_best"
    ):
        Run(tmp_path / "run").begin(last)
    torch.save(content | dict(optimizer={}), tmp_path / "run" / "epoch_0_iter_21.pth")  # the same iteration
    Run(tmp_path / "run").begin(last)
    assert b"fbt sha256:" in best.read_bytes()  # signed, as whatever else a run writes
    assert "optimizer" not in read_checkpoint(best) and read_checkpoint(best)["state_dict"] == {"at": 3 * LENGTH}
    for other in (dict(save_best=None), dict(save_best="student_top5")):  # another best is looked for from here on
        assert "best_score" not in Run(tmp_path / "run", **other).begin(last).message_hub.runtime_info
    content = read_checkpoint(last)
    content["message_hub"]["runtime_info"]["best_score"] = "39"
    torch.save(content, last)
    with pytest.raises(FBTError, match="does not say how good the best weights so far are"):
        Run(tmp_path / "run").begin(last)


def test_what_cannot_be_the_best_is_refused(tmp_path: Path) -> None:
    for options, says in (
        (dict(save_best=["student_top1", "student_top5"]), r"save_best: one metric's name or None, not \['student_"),
        (dict(save_best="student_top2"), "save_best: 'student_top2': no metric of the validation; did you mean"),
        (dict(rule="higher"), "rule: 'greater' or 'less', not 'higher'"),
        (dict(by_epoch=True, epochs=False), "by_epoch: this run counts iterations"),
    ):
        with pytest.raises(ConfigError, match=says):
            Run(tmp_path, **options).begin()  # type: ignore[arg-type]


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    run = Run(tmp_path).begin()
    nn.init.constant_(run.distiller.bias, float("inf"))
    with pytest.raises(FBTError, match="bias is not finite after iteration 0; lower the learning rate"):
        run.signal()
    assert not list(tmp_path.iterdir())


# ---- checkpoint identity --------------------------------------------------------------------------------------------


def test_plain_types_survive_weights_only(tmp_path: Path) -> None:
    value = dict(a=np.float32(1.5), b=[Path("x"), (1, None)], c=torch.ones(2), d=dict(e=True))
    torch.save(plain(value), tmp_path / "x.pth")
    loaded = torch.load(tmp_path / "x.pth", weights_only=True)
    assert loaded["a"] == 1.5 and loaded["b"] == ["x", (1, None)] and loaded["d"] == dict(e=True)
