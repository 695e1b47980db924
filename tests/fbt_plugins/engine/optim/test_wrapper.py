"""The optimizer's wrapper: precision, clipping, and the scaler's state."""

import pytest
import torch
from mmengine.optim import OptimWrapper
from torch import nn

from fbt_plugins.engine.optim.param_groups import MergedGroupConstructor
from fbt_plugins.engine.optim.wrapper import AutocastOptimWrapper
from fbt_plugins.errors import ConfigError


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 2))


def build(model: nn.Module, **options: object) -> OptimWrapper:
    config = dict(optimizer=dict(type="AdamW", lr=0.01, weight_decay=0.1), **options)
    return MergedGroupConstructor(config)(model)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_autocast_is_on_inside_the_step_only(precision: str) -> None:
    model = net()
    wrapper = build(model, precision=precision)
    expected = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    with wrapper.optim_context(model):
        assert model[0](torch.zeros(1, 4)).dtype == expected
    assert model[0](torch.zeros(1, 4)).dtype == torch.float32


def test_fp32_steps_are_those_of_plain_torch_with_clipping() -> None:
    ours, plain = net(), net()
    wrapper = build(ours, clip_grad=dict(max_norm=0.1))
    named = [(p, 0.1 if p.ndim > 1 else 0.0) for p in plain.parameters()]
    reference = torch.optim.AdamW([dict(params=[p], weight_decay=d) for p, d in named], lr=0.01)
    for step in range(3):
        x = torch.randn(5, 4, generator=torch.Generator().manual_seed(step))
        with wrapper.optim_context(ours):
            loss = ours(x).square().sum()
        wrapper.update_params(loss)
        reference.zero_grad()
        plain(x).square().sum().backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
        reference.step()
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_scaler_is_saved_and_restored() -> None:
    first, second = build(net(), precision="fp16"), build(net(), precision="fp16")
    assert isinstance(first, AutocastOptimWrapper) and isinstance(second, AutocastOptimWrapper)
    first.optimizer.zero_grad()
    first._scaler._init_scale = 77.0
    first.update_params(next(iter(first.optimizer.param_groups[0]["params"])).sum())
    second.load_state_dict(first.state_dict())
    assert second.state_dict()["scaler"] == first.state_dict()["scaler"]


def test_an_unknown_precision_is_named() -> None:
    with pytest.raises(ConfigError, match=r"optim_wrapper.precision: 'bf61'; did you mean 'bf16'"):
        build(net(), precision="bf61")
