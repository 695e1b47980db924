"""The optimizer: precision, accumulation, clipping, and its parameter groups."""

import pytest
import torch
from mmengine.optim import OptimWrapper
from torch import nn

from fbt_plugins.distill.distiller import Distiller
from fbt_plugins.engine.optim.param_groups import MergedGroupConstructor
from fbt_plugins.engine.optim.wrapper import MOST_SKIPPED, AlwaysOverflows, AutocastOptimWrapper
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


# ---- param groups ---------------------------------------------------------------------------------------------------


def test_two_groups_hold_every_trained_parameter_once_and_no_frozen_one() -> None:
    model = net()
    model[0].requires_grad_(False)
    groups = build(model).optimizer.param_groups
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    assert all(p.ndim > 1 for p in groups[0]["params"]) and all(p.ndim <= 1 for p in groups[1]["params"])
    listed = [id(p) for g in groups for p in g["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_vectors_decay_where_the_config_says_so() -> None:
    wrapper = MergedGroupConstructor(dict(optimizer=dict(type="SGD", lr=1.0)), dict(decay_vectors=True))(net())
    assert len(wrapper.optimizer.param_groups) == 1
    with pytest.raises(ConfigError, match="no option 'decay_vector'; did you mean 'decay_vectors'"):
        MergedGroupConstructor(dict(), dict(decay_vector=True))


VIT = dict(
    type="timm",
    name="vit_tiny_patch16_224",
    img_size=32,
    patch_size=8,
    depth=4,
    embed_dim=24,
    num_heads=2,
    num_classes=10,
)


def groups_of(student: dict[str, object], **paramwise: object) -> tuple[Distiller, dict[str, tuple[float, float]]]:
    """A student, and the learning rate and decay of each of its parameters."""
    distiller = Distiller(student=student, task_loss=dict(type="CrossEntropyLoss"), image_size=(32, 32))
    config = dict(optimizer=dict(type="AdamW", lr=1.0, weight_decay=0.1))
    groups = MergedGroupConstructor(config, paramwise)(distiller).optimizer.param_groups
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(groups) == len(set(rates.values()))
    return distiller, {name.removeprefix("student.net."): rates[id(p)] for name, p in distiller.named_parameters()}


def test_what_the_network_exempts_does_not_decay() -> None:
    _, rates = groups_of(VIT)
    assert rates["pos_embed"] == rates["cls_token"] == rates["blocks.1.attn.qkv.bias"] == (1.0, 0.0)
    assert rates["blocks.1.attn.qkv.weight"] == rates["patch_embed.proj.weight"] == (1.0, 0.1)


def test_layer_decay_falls_from_the_head_to_the_stem_in_merged_groups() -> None:
    _, rates = groups_of(VIT, layer_decay=0.5)
    assert rates["head.weight"] == (1.0, 0.1)
    for block, rate in enumerate((0.0625, 0.125, 0.25, 0.5)):
        assert rates[f"blocks.{block}.attn.qkv.weight"] == (rate, 0.1)
        assert rates[f"blocks.{block}.norm1.weight"] == (rate, 0.0)
    assert rates["pos_embed"] == (0.03125, 0.0) and rates["patch_embed.proj.weight"] == (0.03125, 0.1)


def test_layer_decay_says_what_it_needs() -> None:
    with pytest.raises(ConfigError, match="layer_decay: above 0 and at most 1, not 2"):
        groups_of(VIT, layer_decay=2)
    with pytest.raises(ConfigError, match=r"layer_decay: set optim_wrapper.optimizer.lr"):
        MergedGroupConstructor(dict(optimizer=dict(type="AdamW")), dict(layer_decay=0.5))(net())


def test_fp16_whose_gradient_is_never_finite_stops_and_names_a_parameter() -> None:
    model = net()
    wrapper = build(model, type="AutocastOptimWrapper", precision="fp16")
    inputs, before = torch.ones(2, 4), [p.clone() for p in model.parameters()]

    def updates(count: int, factor: float) -> None:
        for _ in range(count):
            hook = model[1].weight.register_hook(lambda gradient: gradient * factor)
            wrapper.update_params(model(inputs).square().mean())
            hook.remove()

    wrapper.initialize_count_status(model, 0, 100)
    updates(MOST_SKIPPED - 1, float("nan"))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert wrapper.only_skipped == MOST_SKIPPED - 1  # what a run that ends here is told
    updates(1, 1.0)  # one that is finite: the count begins again
    assert wrapper.only_skipped == 0
    updates(MOST_SKIPPED - 1, float("nan"))
    with pytest.raises(AlwaysOverflows, match=f"not finite in {MOST_SKIPPED} updates in a row") as error:
        updates(1, float("nan"))
    assert error.value.parameters == [model[1].weight]
