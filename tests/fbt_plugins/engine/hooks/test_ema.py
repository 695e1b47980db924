"""The average of the weights: its arithmetic, where it is used, and what a resume makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from runs import Build, run, run_until
from safetensors.torch import load_file
from torch import Tensor

from fbt_plugins.engine.hooks.checkpoints import read_checkpoint
from fbt_plugins.engine.hooks.ema import TRAINED
from fbt_plugins.engine.runner import DistillRunner
from fbt_plugins.errors import FBTError


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
    """That it goes on exactly is seen in test_checkpoints.py."""
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
