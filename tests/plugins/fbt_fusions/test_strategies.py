"""What the strategies beside L2G have in common with it, and what tells each apart."""

import pytest
import torch
from conftest import CNN, RESMLP, SWIN, VIT
from fbt_fusions.identity import IdentityFusion
from fbt_fusions.projector import PatchEmbedding
from timm.models.convnext import ConvNeXtBlock
from timm.models.mlp_mixer import MixerBlock
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.vision_transformer import Block

from fbt_plugins import FUSIONS
from fbt_plugins.distill.fusion import build_junctions
from fbt_plugins.distill.splice import Splice
from fbt_plugins.errors import ConfigError
from fbt_plugins.models.staged import StageSpec
from fbt_plugins.testing.checks import check_fusion

BLOCKS = {
    "L2GFusion": SwinTransformerBlock,
    "PatchEmbedOnly": torch.nn.Identity,
    "AttentionL2G": Block,
    "ConvL2G": ConvNeXtBlock,
    "MixerL2G": MixerBlock,
}
MAP = StageSpec("NCHW", 24, (8, 8))
TOKENS = StageSpec("NLC", 16, (4, 3), 2)


def junction(
    name: str, source: StageSpec, target: StageSpec, splice: str = "S1-3+T4", **options: float
) -> torch.nn.Module:
    junctions = FUSIONS.build(dict(type=name, **options)).build([source] * 4, [target] * 4, Splice.parse(splice))
    return next(iter(junctions.values()))


@pytest.mark.parametrize("name", BLOCKS)
def test_joins_all_layouts_grids_and_widths(name: str) -> None:
    check_fusion(dict(type=name))


@pytest.mark.parametrize("name", BLOCKS)
def test_differ_in_the_block_behind_the_patch_embedding_alone(name: str) -> None:
    module = junction(name, MAP, TOKENS)
    assert isinstance(module[1], PatchEmbedding)
    own = None if BLOCKS[name] is torch.nn.Identity else BLOCKS[name]
    blocks = [type(m) for m in module.modules() if type(m) in BLOCKS.values()]
    assert [b for b in blocks if b is not torch.nn.Identity] == ([own] if own else [])


@pytest.mark.parametrize(
    ("name", "seen"), [("PatchEmbedOnly", 4), ("ConvL2G", 36), ("AttentionL2G", 64), ("MixerL2G", 64)]
)
def test_how_far_a_position_sees(name: str, seen: int) -> None:
    """A 3x3 kernel, from patches of 2x2, sees 6x6 of 8x8 positions."""
    options = dict(kernel_size=3) if name == "ConvL2G" else {}
    strategy = FUSIONS.build(dict(type=name, **options))
    target = StageSpec("NHWC", 16, (4, 4))
    module = strategy.build([MAP] * 4, [target] * 4, Splice.parse("S1-3+T4"))["S3_T4"]
    x = torch.randn(1, 24, 8, 8, requires_grad=True)
    (module(x)[0, 1, 1] * torch.randn(16)).sum().backward()
    assert (x.grad.abs().sum(1) > 0).sum() == seen


def test_identity_hands_over_what_arrives() -> None:
    for layout in ("NCHW", "NHWC"):
        check_fusion(IdentityFusion(), layouts=(layout,))
    x = torch.randn(2, 14, 16)
    assert junction("IdentityFusion", TOKENS, TOKENS, "S1-4+Thead")(x) is x


def order(*numbers: int) -> StageSpec:
    return StageSpec("NLC", 16, (4, 3), 2, raster=False, order=torch.tensor(numbers) if numbers else None)


@pytest.mark.parametrize(
    ("source", "target", "what"),
    [
        (MAP, StageSpec("NHWC", 24, (8, 8)), "layouts differ"),
        (MAP, StageSpec("NCHW", 24, (4, 4)), "grids differ"),
        (TOKENS, StageSpec("NLC", 20, (4, 3), 1), "widths, numbers of prefix tokens differ"),
        (TOKENS, order(*range(12)), "orders of tokens differ"),
        (order(*range(12)), order(*reversed(range(12))), "orders of tokens differ"),
        (order(), order(), "orders of tokens differ"),  # nobody knows them
    ],
)
def test_identity_refuses_unequal_ends_with_both_shapes(source: StageSpec, target: StageSpec, what: str) -> None:
    with pytest.raises(ConfigError) as refused:
        build_junctions(IdentityFusion(), [source] * 4, [target] * 4, Splice.parse("S1-3+T4"))
    shapes = f"S3_T4 from {source} to {target}"
    reason = f"an identity needs equal ends; at S3_T4 {what}"
    assert str(refused.value) == f"splice S1-3+T4 cannot be built ({shapes}): {reason}"
    same = order(*range(12))
    assert IdentityFusion().build([same] * 4, [same] * 4, Splice.parse("S1-3+T4"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (dict(type="AttentionL2G", head_dim=0), "head_dim must be positive, not 0"),
        (dict(type="AttentionL2G", head_dim=float("inf")), "head_dim must be a whole number, not inf"),
        (dict(type="AttentionL2G", mlp_ratio=float("inf")), "mlp_ratio must be finite, not inf"),
        (dict(type="ConvL2G", kernel_size=4), "kernel_size must be odd, not 4"),
        (dict(type="ConvL2G", mlp_ratio=-1.0), "mlp_ratio must be positive, not -1.0"),
        (dict(type="MixerL2G", token_ratio=0.0), "token_ratio must be positive, not 0.0"),
        (dict(type="PatchEmbedOnly", window=7), "no argument 'window'"),
        (dict(type="L2GFusion", depth=0), "depth must be positive, not 0"),
    ],
)
def test_wrong_arguments_are_config_errors(options: dict, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        FUSIONS.build(options)


@pytest.mark.parametrize("name", [name for name in BLOCKS if name != "PatchEmbedOnly"])
def test_depth_is_the_number_of_blocks(name: str) -> None:
    target = StageSpec("NCHW", 40, (5, 5))
    one, three = junction(name, MAP, target), junction(name, MAP, target, depth=3)
    assert [type(m) for m in three] == [*map(type, one[:2]), *[type(one[2])] * 3, type(one[3])]
    assert three(torch.randn(2, 24, 8, 8)).shape == (2, 40, 5, 5)


def test_every_second_block_of_l2g_shifts_its_windows() -> None:
    module = junction("L2GFusion", MAP, StageSpec("NCHW", 40, (8, 8)), window=4, depth=4)
    assert [m.shift_size for m in module if hasattr(m, "shift_size")] == [(0, 0), (2, 2), (0, 0), (2, 2)]


@pytest.mark.parametrize("name", BLOCKS)
def test_half_precision_in_autocast(name: str) -> None:
    """Of activations in float32, and of those that are half precision already and must be resized."""
    module, x = junction(name, MAP, StageSpec("NCHW", 40, (5, 5))), torch.randn(2, 24, 8, 8)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            assert all(torch.isfinite(module(given).float()).all() for given in (x, x.to(dtype)))


@pytest.mark.parametrize(("student", "teacher"), [(CNN, SWIN), (VIT, RESMLP)], ids=lambda c: c["name"])
def test_a_splice_of_real_models_trains(make, images, student: dict, teacher: dict) -> None:  # type: ignore[no-untyped-def]
    for name in BLOCKS:
        model = make(student, teacher, fusion=dict(type=name, splice="S1+T2+S3-4")).train()
        model.know(images, {"fusion"})["fusion"].logits.square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.fusions.parameters())
