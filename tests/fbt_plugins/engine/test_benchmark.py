"""The benchmark's bare loop does a run's arithmetic, its figures are whole, and a step waits for no device."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from runs import Build
from torch.utils._python_dispatch import TorchDispatchMode

from fbt_plugins.engine import benchmark
from fbt_plugins.engine.benchmark import PARTS, BareLoop
from fbt_plugins.engine.runner import DistillRunner
from fbt_plugins.errors import ConfigError

SCRATCH = {f"model.{key}": None for key in ("teacher", "fusion", "feature_loss", "logit_loss")} | {"model.edges": []}
CASES = {
    "fbt": {},
    "splice that starts in the teacher": {"model.fusion.splice": "T1-3+S4"},
    "a splice drawn in each step": {"model.fusion.splice": ["S1-3+T4", "S1-2+T3-4"]},
    "no teacher": SCRATCH,
    "bf16": {"optim_wrapper.precision": "bf16"},
    "mixup": {"data_preprocessor": dict(mixup_alpha=0.8)},
    "teacher cache": {"teacher_cache.views": 2},
}


@pytest.fixture
def ready(config: Build, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Builds a run up to its first step: the runner, and a batch as its hooks leave it."""

    def build(name: str, **options: Any) -> tuple[DistillRunner, dict[str, torch.Tensor]]:
        found: list[DistillRunner] = []
        monkeypatch.setattr(benchmark, "_measure", lambda runner, *rest: found.append(runner) or {})
        benchmark.benchmark(config(name, **options))
        runner = found[0]
        runner.optim_wrapper.period = len(runner.train_dataloader)
        runner.call_hook("before_train")
        runner.call_hook("before_train_epoch")
        runner.model.train()
        batch = next(iter(runner.train_dataloader))
        runner.call_hook("before_train_iter", batch_idx=0, data_batch=batch)
        runner.model.data_preprocessor.step_seed = 0
        return runner, batch

    return build


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_the_bare_loop_makes_the_same_update(ready: Any, options: dict[str, Any]) -> None:
    (ours, batch), (plain, same) = ready("ours", **options), ready("plain", **options)
    before = {name: p.detach().clone() for name, p in ours.model.named_parameters()}
    assert all(torch.equal(batch[name], same[name]) for name in batch)
    ours.model.train_step(batch, ours.optim_wrapper)
    parts: list[str] = []
    bare = BareLoop(plain)
    bare.step(same, parts.append)
    assert tuple(parts) == PARTS
    theirs = dict(plain.model.named_parameters())
    for name, parameter in ours.model.named_parameters():
        torch.testing.assert_close(
            theirs[name], parameter, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}"
        )
        assert torch.equal(theirs[name], before[name]) == torch.equal(parameter, before[name])
    assert bare.optimizer.param_groups[0]["params"][0] is plain.optim_wrapper.optimizer.param_groups[0]["params"][0]


@pytest.mark.parametrize(
    "options", [{}, {**SCRATCH, "train_cfg": dict(by_epoch=False, max_iters=99)}], ids=["fbt", "iter"]
)
def test_the_figures_of_a_benchmark(config: Build, options: dict[str, Any]) -> None:
    found = benchmark.benchmark(config("run", **options), rounds=3, after=7)
    times = found["milliseconds"]
    distils = not options
    gone = set() if distils else {"fusion"}
    assert {"data", *PARTS, "engine", "bare step", "engine step", "whole"} - gone <= times.keys() | {"teacher"}
    assert all(0 <= v["low"] <= v["median"] <= v["high"] for name, v in times.items() if name != "engine")
    assert found["batch_size"] == 8 and found["after_iterations"] == 7 and found["peak_memory_mb"] > 0
    assert ("fusion" in found) == distils
    assert found["images_per_second"] == pytest.approx(8e3 / times["whole"]["median"])
    for part in ("student", "losses", "backward", "optimizer"):
        assert 0 < times[part]["median"] < times["bare step"]["median"]


def test_what_cannot_be_measured_is_refused(config: Build) -> None:
    with pytest.raises(ConfigError, match="accumulative_counts: a benchmark is of steps that update; set it to 1"):
        benchmark.benchmark(config("run", **{"optim_wrapper.accumulative_counts": 2}))
    distributed = config("run")
    distributed.launcher = "pytorch"
    with pytest.raises(ConfigError, match="a benchmark is of one process"):
        benchmark.benchmark(distributed)


class Reads(TorchDispatchMode):
    """Counts what would wait for a GPU: a number that is read, or a tensor whose shape depends on numbers."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in self.WAITING:
            self.found[name] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [{}, {"ema.decay": 0.9}, {"optim_wrapper.clip_grad": None}])
def test_a_step_reads_nothing_from_the_device_between_two_records(ready: Any, options: dict[str, Any]) -> None:
    fused = {"optim_wrapper.optimizer.fused": True, "train_dataloader.in_memory": True}  # as it is on a GPU
    runner, _ = ready("run", **fused, **options, **{"default_hooks.progress.interval": 50})
    runner.optim_wrapper._masked_on_device = True
    batches = list(runner.train_dataloader)
    with Reads() as reads:
        for index, batch in enumerate(batches):
            runner.train_loop.run_iter(index, batch)
        assert not reads.found
        runner.check_losses(len(batches))
        losses = runner.model.train_step(batches[0], runner.optim_wrapper)
        assert not reads.found and losses["loss"].item() > 0
    assert reads.found == {"_local_scalar_dense": 1}  # what counts is not blind


def test_a_fused_optimizer_makes_no_update_after_a_nan_and_nobody_has_to_look(ready: Any) -> None:
    runner, batch = ready("run", **{"optim_wrapper.optimizer.fused": True})
    wrapper = runner.optim_wrapper
    wrapper._masked_on_device = True
    runner.model.train_step(batch, wrapper)
    before = {name: p.detach().clone() for name, p in runner.model.named_parameters()}
    wrapper.update_params(sum(p.sum() for p in runner.model.parameters() if p.requires_grad) * float("nan"))
    runner.model.train_step(batch, wrapper)
    assert float(wrapper.trusted()) == 0
    for name, parameter in runner.model.named_parameters():
        assert torch.equal(parameter, before[name]), name
