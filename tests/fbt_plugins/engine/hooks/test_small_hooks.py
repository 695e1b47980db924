"""The average of weights, progress and its losses, step seeds, the look at the teacher, top-1."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from fbt_architectures.traced_cut import cut_by_trace
from mmengine.hooks import Hook
from runs import Build, curve, run, run_until
from safetensors.torch import load_file
from torch import Tensor, nn

from fbt_plugins.config.hashing import training_hash
from fbt_plugins.engine.checkpoints.files import read_checkpoint
from fbt_plugins.engine.hooks import step_seed as seeding
from fbt_plugins.engine.hooks.batchnorm import statistics
from fbt_plugins.engine.hooks.ema import TRAINED
from fbt_plugins.engine.hooks.loss_guard import LossWindow
from fbt_plugins.engine.hooks.progress import ProgressHook
from fbt_plugins.engine.hooks.topk import TopK
from fbt_plugins.engine.runner import DistillRunner
from fbt_plugins.errors import FBTError
from fbt_plugins.randomness import derive_seed


def test_a_shipped_figure_of_the_student_alone_is_shown_where_the_training_is_the_same(
    config: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = config("plain", **{"train_cfg.max_epochs": 1})
    shipped = dict(top1=12.34, std=0.5, seeds=5, training=training_hash(plain.to_dict()), command="fbt train it")
    same, other = config("same", **{"train_cfg.max_epochs": 1}), config("other", **{"train_cfg.max_epochs": 2})
    for taught in (same, other):
        taught.without_teacher = shipped
        taught.model.task_loss.weight = 0.5
        run(taught)
        shown = capsys.readouterr().out
        summary = json.loads((Path(taught.work_dir) / "summary.json").read_text())
        if taught is same:
            assert "student without a teacher" in shown and "alone    12.34 ± 0.50 %, 5 seeds: fbt train it" in shown
            assert summary["without_teacher"] == shipped
        else:
            assert "without a teacher" not in shown and summary["without_teacher"] is None


def test_what_a_student_is_taught_does_not_change_the_training_it_has_alone(config: Build) -> None:
    def of(**options: Any) -> str:
        return training_hash(config(**options).to_dict())

    plain = of()
    for taught in ({"model.fusion": None, "model.edges": []}, {"randomness.seed": 9}, {"model.task_loss.weight": 3.0}):
        assert of(**taught) == plain
    assert of(**{"teacher_cache": dict(views=2)}) == of(**{"teacher_cache": dict(views=2, required=False)}) != plain
    for changed in ({"optim_wrapper.optimizer.lr": 1.0}, {"model.student.num_classes": 11}, {"ema.decay": 0.5}):
        assert of(**changed) != plain


class Recorder(Hook):
    """Keeps the trained weights after each step, and those that validation sees."""

    priority = "LOWEST"

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []
        self.validated: list[dict[str, Tensor]] = []

    def _weights(self, runner: DistillRunner) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in runner.model.named_parameters()}

    def before_train(self, runner: DistillRunner) -> None:
        self.steps.append(self._weights(runner))

    def after_train_iter(self, runner: DistillRunner, *args: object, **kwargs: object) -> None:
        self.steps.append(self._weights(runner))

    def before_val_epoch(self, runner: DistillRunner) -> None:
        self.validated.append(self._weights(runner))


@pytest.mark.parametrize("batches", [1, 3])
def test_it_is_what_the_formula_says_and_what_validation_and_the_student_have(config: Build, batches: int) -> None:
    options = {"ema.decay": 0.5, "optim_wrapper.accumulative_counts": batches}
    runner, recorder = DistillRunner.from_cfg(config("run", **options)), Recorder()
    runner.register_hook(recorder)
    runner.train()
    average, expected = recorder.steps[0], []
    for t, weights in enumerate(recorder.steps[1:], 1):
        if t % 4 == 0 or (t % 4) % batches == 0:  # an epoch of 4 batches ends a group of accumulated ones
            step = 1 - min(0.5, (1 + t) / (10 + t))
            average = {name: old + step * (weights[name] - old) for name, old in average.items()}
        if t % 4 == 0:
            expected.append(average)
    for seen, wanted in zip(recorder.validated[-3:], expected, strict=True):
        for name, value in wanted.items():
            torch.testing.assert_close(seen[name], value, msg=name)
    folder, best = Path(runner.work_dir), Path(runner.message_hub.get_info("best_ckpt"))
    state = read_checkpoint(best)["state_dict"]
    student = load_file(folder / "student.safetensors")
    for name, value in student.items():
        assert torch.equal(value, state[f"student.net.{name}"])
    last = read_checkpoint(folder / "epoch_3.pth")
    for name, value in expected[-1].items():
        torch.testing.assert_close(last["state_dict"][name], value)
        assert torch.equal(last[TRAINED][name], recorder.steps[-1][name])


def test_a_run_goes_on_with_an_average_only_where_it_had_one(config: Build) -> None:
    """That it goes on exactly is seen in test_resuming.py."""
    run_until(config("cut", **{"ema.decay": 0.9}), 5)
    with pytest.raises(FBTError, match="it is of a run with an average of its weights; set ema as it was"):
        run(config("cut", resume=True))
    run_until(config("plain"), 5)
    with pytest.raises(FBTError, match="without an average of its weights; set ema=None"):
        run(config("plain", resume=True, **{"ema.decay": 0.9}))
    # What was averaged is where another run starts from.
    checkpoint = Path(config("cut").work_dir) / "epoch_1.pth"
    start = DistillRunner.from_cfg(config("next", load_from=str(checkpoint)))
    start.load_or_resume()
    state, trained = (read_checkpoint(checkpoint)[part] for part in ("state_dict", TRAINED))
    assert all(torch.equal(value, state[name]) for name, value in start.model.state_dict().items())
    assert not all(torch.equal(value, state[name]) for name, value in trained.items())


def test_it_stops_with_the_updates_at_the_first_nan(config: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    from fbt_losses import OFALoss

    calls, forward = [0], OFALoss.forward

    def poisoned(self: OFALoss, *args: object) -> Tensor:
        calls[0] += 1
        return forward(self, *args) * (float("nan") if calls[0] > 3 * 5 else 1.0)  # three edges: from iteration 6 on

    monkeypatch.setattr(OFALoss, "forward", poisoned)
    options = {"ema.decay": 0.5, "default_hooks.progress.interval": 4}
    with pytest.raises(FBTError, match="was nan at iteration 6"):
        run(config("bad", **options))
    monkeypatch.setattr(OFALoss, "forward", forward)
    whole = DistillRunner.from_cfg(config("good", **options, train_cfg=dict(by_epoch=False, max_iters=5)))
    whole.train()
    bad, good = (Path(whole.work_dir).parent / name for name in ("bad/epoch_1_iter_5.pth", "good/iter_5.pth"))
    for part in ("state_dict", TRAINED):
        expected = read_checkpoint(good)[part]
        for name, value in read_checkpoint(bad)[part].items():
            assert torch.equal(value, expected[name]), f"{part} {name}"


# ---- progress -------------------------------------------------------------------------------------------------------


def test_images_per_second_leave_out_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hook, clock = ProgressHook(), iter([100.0, 160.0])
    hook._last, hook._file = 90.0, tmp_path / "metrics.jsonl"
    monkeypatch.setattr("fbt_plugins.engine.hooks.progress.time.perf_counter", lambda: next(clock))
    runner = MagicMock(iter=4, epoch=1, max_epochs=1)
    hook.before_val_epoch(runner)
    hook.after_val_epoch(runner, {"student_top1": 50.0})
    assert hook._last == 150.0  # ten seconds of training before it


def test_a_byte_that_is_no_letter_costs_one_record_and_no_resume(tmp_path: Path) -> None:
    hook = ProgressHook()
    hook._file = tmp_path / "metrics.jsonl"
    good = [b'{"iter": 1, "a": "\xc3\xa9"}', b'{"iter": 2}']
    hook._file.write_bytes(
        b"\n".join([good[0], b'{"iter": 2, "a": "\xff"}', b"\xff\x00", b"[" * 9999, *good[1:], b'{"it'])
    )
    hook._forget_after(2)
    assert hook._file.read_bytes() == b"\n".join([*good, b""])


def test_a_window_of_losses_comes_back_also_from_before_each_process_had_its_own() -> None:
    window, names = LossWindow(), ["task", "edge/logit"]
    values = torch.tensor([[1.0, 2.0, 0.5], [3.0, 4.0, 0.0]])
    for saved in (values[None], values):
        window.load_state_dict(dict(names=names, values=saved), torch.device("cpu"))
        assert window.read() == {"task": [1.0, 3.0], "edge/logit": [2.0, 4.0], "grad_norm": [0.5, 0.0]}
        assert window.state_dict()["values"].tolist() == [values.tolist()]
    window.cut(0)
    for empty in (window.state_dict(), dict(names=names, values=torch.empty(0))):
        window.load_state_dict(empty, torch.device("cpu"))
        assert len(window) == 0


# ---- step seed ------------------------------------------------------------------------------------------------------


SPLICES = {"model.fusion.splice": ["S1-3+T4", "S1-2+T3-4", "S1+T2-4"], "val_dataloader": None, "val_cfg": None}


def test_all_processes_draw_the_same_splices(config: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, list[tuple[int, int]]] = {}
    for rank in (0, 1):
        monkeypatch.setattr(seeding, "get_rank", lambda rank=rank: rank)
        runner = DistillRunner.from_cfg(config(f"rank_{rank}", **SPLICES, val_evaluator=None))
        draws = seen[rank] = []
        step = runner.model.train_step

        def watched(*args, step=step, model=runner.model, draws=draws, **kwargs):  # type: ignore[no-untyped-def]
            draws.append((model.step.splices[0], int(torch.randint(2**60, ()))))
            return step(*args, **kwargs)

        runner.model.train_step = watched
        runner.train()
    drawn = [[splice for splice, _ in draws] for draws in seen.values()]
    assert drawn[0] == drawn[1] == [derive_seed(derive_seed(3, step), 0) % 3 for step in range(12)]
    assert set(drawn[0]) == {0, 1, 2}
    assert not {number for _, number in seen[0]} & {number for _, number in seen[1]}  # dropout is each process's own


# ---- teacher check --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", [{}, {"default_hooks.teacher_check": None}], ids=["checked", "unchecked"])
def test_the_teacher_is_evaluated_once_and_part_of_every_validation(
    config: Build, capsys: pytest.CaptureFixture[str], hook: dict[str, Any]
) -> None:
    no_test = dict.fromkeys(("test_dataloader", "test_cfg", "test_evaluator"))
    settings = config("run", **hook)
    settings.update(no_test)
    settings.default_hooks.summary = None
    runner = DistillRunner.from_cfg(settings)
    sample, asked = runner.distiller.sample, []

    def recording(data: Any, names: Sequence[str], wants: Any) -> Any:
        asked.append(list(names))
        return sample(data, names, wants)

    runner.distiller.sample = recording
    runner.train()
    assert asked.count(["teacher"]) == 1  # the validation set is one batch
    assert asked.count(["student", "fusion"]) == 3 and len(asked) == 4
    metrics = [record for record in curve(runner) if "val/student_top1" in record]
    assert len(metrics) == 3 and len({record["val/teacher_top1"] for record in metrics}) == 1
    said = capsys.readouterr().out
    assert ("THE TEACHER IS NEAR CHANCE" in said) == ("before the first step" in said) == (not hook)


# ---- topk -----------------------------------------------------------------------------------------------------------


def test_topk_counts_by_hand() -> None:
    logits = torch.tensor([[9.0, 5.0, 1.0], [9.0, 5.0, 1.0], [1.0, 5.0, 9.0], [5.0, 9.0, 1.0]])
    metric = TopK(topk=(1, 2, 5))
    metric.process(None, [dict(labels=torch.tensor([0, 1, 0, 1]), student=logits, teacher=-logits)])
    # student: right, second, third, right; teacher (reversed): third, second, right, third
    assert metric.evaluate(4) == dict(student_top1=50.0, student_top2=75.0, teacher_top1=25.0, teacher_top2=50.0)


def test_images_without_a_label_do_not_count() -> None:
    metric, logits = TopK(topk=(1,)), torch.eye(3)
    metric.process(None, [dict(labels=torch.tensor([-1, 1, 0]), student=logits)])
    assert metric.evaluate(3) == dict(student_top1=50.0)
    metric.process(None, [dict(labels=torch.tensor([-1, -1, -1]), student=logits)])
    with pytest.raises(FBTError, match="TopK needs labels, and no image of this split has one"):
        metric.evaluate(3)


def test_padding_is_trimmed() -> None:
    metric = TopK(topk=(1,))
    logits = torch.eye(3)
    metric.process(None, [dict(labels=torch.tensor([0, 1, 0]), student=logits)])
    assert metric.evaluate(2) == dict(student_top1=100.0)


class Level(nn.Module):
    """Keeps an average under a name of its own."""

    level: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("level", torch.zeros(4))
        self.register_buffer("scale", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.level.lerp_(x.detach().mean((0, 2, 3)), 0.1)
        return x * self.scale[:, None, None] - self.level[:, None, None]


def test_processes_average_whatever_training_changes_and_nothing_else() -> None:
    layers = [nn.Sequential(nn.Conv2d(3 if i == 0 else 4, 4, 3, 2, 1), Level(), nn.BatchNorm2d(4)) for i in range(2)]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    model = cut_by_trace(net, ["0", "1"], name="net", image_size=(16, 16))
    names = {id(buffer): name.rpartition(".")[2] for name, buffer in net.named_buffers()}
    found = [names[id(buffer)] for buffer in statistics(nn.ModuleDict({"student": model}))]
    assert found == ["level", "running_mean", "running_var"] * 2
