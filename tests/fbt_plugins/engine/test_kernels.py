"""What changes how a step is computed must not change what it computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runs import Build, curve, run

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
