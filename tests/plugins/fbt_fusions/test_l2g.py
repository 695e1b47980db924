"""L2G and its variants: what they have in common, and what tells each apart."""

import pytest
import torch
from conftest import CNN, RESMLP, SWIN, VIT
from fbt_fusions.identity import IdentityFusion
from fbt_fusions.l2g import L2GFusion
from fbt_fusions.projector import PatchEmbedding
from timm.models.convnext import ConvNeXtBlock
from timm.models.mlp_mixer import MixerBlock
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.vision_transformer import Block

from fbt_plugins import FUSIONS, FromMap, ToMap
from fbt_plugins.distill.fusion import build_junctions
from fbt_plugins.distill.splice import Splice
from fbt_plugins.errors import ConfigError
from fbt_plugins.models.shapes import StageSpec
from fbt_plugins.testing.checks import SPLICES, check_fusion

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
    """What stands behind the patch embedding does not know between which stages: all splices are tried with one."""
    splices = SPLICES if name == "L2GFusion" else ("S1+T2+S3-4", "S1-4+Thead")
    check_fusion(dict(type=name), splices=splices)


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
        (dict(type="L2GFusion", window=0), "window must be positive"),
        (dict(type="L2GFusion", windw=7), "no argument 'windw'; did you mean 'window'"),
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


# ---- L2G itself ----------------------------------------------------------------------------------------------------

TARGETS = [
    StageSpec("NCHW", 48, (4, 4)),
    StageSpec("NHWC", 48, (4, 4)),
    StageSpec("NLC", 48, (4, 4)),
    StageSpec("NLC", 48, (4, 4), prefix_tokens=2),
    StageSpec("NCHW", 40, (5, 5)),  # does not divide 8
    StageSpec("NLC", 40, (3, 5), prefix_tokens=1),
    StageSpec("NHWC", 33, (14, 14)),  # grows, and no head width divides 33 but 1, 3, 11, 33
    StageSpec("NCHW", 16, (1, 1)),
    StageSpec("NCHW", 16, (9, 16)),  # larger than a window, and not a multiple of it
]
SOURCES = [
    MAP,
    StageSpec("NHWC", 24, (8, 8)),
    StageSpec("NLC", 24, (8, 8)),
    StageSpec("NLC", 24, (6, 9), prefix_tokens=1),
]


def sample(spec: StageSpec) -> torch.Tensor:
    return torch.randn(spec.sizes(2), generator=torch.Generator().manual_seed(0))


def l2g(source: StageSpec, target: StageSpec) -> torch.nn.Module:
    specs = [source] * 3, [target] * 4
    return L2GFusion(head_dim=8).build(*specs, Splice.parse("S1-3+T4", 3 + 1, 4))["S3_T4"]


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_lands_on_what_the_next_stage_takes(source: StageSpec, target: StageSpec) -> None:
    module = l2g(source, target)
    x = sample(source).requires_grad_()
    y = module(x)
    assert y.shape == sample(target).shape
    y.square().sum().backward()
    assert torch.isfinite(x.grad).all()
    kept = x.grad[:, source.prefix_tokens :] if source.layout == "NLC" else x.grad
    assert (kept.flatten(1).abs().sum(1) > 0).all()
    assert all(p.grad is not None for p in module.parameters())


def test_is_a_patch_embedding_and_a_swin_block() -> None:
    kinds = [type(m) for m in l2g(MAP, TARGETS[0]).modules()]
    assert kinds.count(PatchEmbedding) == kinds.count(SwinTransformerBlock) == 1


def test_patch_embedding_is_a_convolution_whose_kernel_is_its_stride() -> None:
    embedding = PatchEmbedding(MAP, StageSpec("NCHW", 48, (4, 4)))
    assert embedding.proj.kernel_size == embedding.proj.stride == (2, 2)
    x = sample(MAP)
    torch.testing.assert_close(embedding(x), embedding.norm(embedding.proj(x).permute(0, 2, 3, 1)))


@pytest.mark.parametrize(("grid", "window"), [((4, 4), (4, 4)), ((7, 7), (7, 7)), ((14, 14), (7, 7)), ((5, 9), (5, 7))])
def test_window_is_the_grid_or_seven_whichever_is_smaller(grid: tuple[int, int], window: tuple[int, int]) -> None:
    block = next(m for m in l2g(MAP, StageSpec("NCHW", 32, grid)).modules() if isinstance(m, SwinTransformerBlock))
    assert block.window_size == window


def test_tokens_stay_in_raster_order() -> None:
    """Identity weights must bring position (i, j) of a map to token i * width + j."""
    source, target = StageSpec("NCHW", 4, (2, 3)), StageSpec("NLC", 4, (2, 3), prefix_tokens=1)
    to_map, embed, _, from_map = l2g(source, target)
    embed.norm = torch.nn.Identity()
    with torch.no_grad():
        embed.proj.weight.copy_(torch.eye(4)[:, :, None, None])
        embed.proj.bias.zero_()
    x = torch.arange(24.0).reshape(1, 4, 2, 3)
    tokens = from_map(embed(to_map(x)))
    assert torch.equal(tokens[0, 1:], x[0].flatten(1).T)


def test_prefix_tokens_are_learned_and_start_from_the_owners_own() -> None:
    own = torch.randn(1, 48)
    module = l2g(MAP, StageSpec("NLC", 48, (4, 4), 1, prefix=own))
    assert torch.equal(module(sample(MAP))[:, :1], own.expand(2, 1, 48))
    assert module[-1].prefix.requires_grad


def test_tokens_of_an_order_of_their_own_are_put_in_place_or_refused() -> None:
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    known = StageSpec("NLC", 24, (4, 4), 1, raster=False, order=order)
    tokens = sample(known)
    as_map = ToMap(known)(tokens)
    assert torch.equal(as_map[0, :, 1, 2], tokens[0, 1 + order[6]])
    assert torch.equal(FromMap(known)(as_map.permute(0, 2, 3, 1))[:, 1:], tokens[:, 1:])
    assert not l2g(known, known).state_dict().keys() & {"0.order", "3.order"}  # the model knows it: not saved
    unknown = StageSpec("NLC", 24, (4, 4), 1, raster=False)
    for source, target in ((unknown, MAP), (MAP, unknown)):
        with pytest.raises(ConfigError, match="the tokens come in an order of the model's own"):
            l2g(source, target)


# ---- identity -------------------------------------------------------------------------------------------------------


def test_identity_hands_over_what_arrives() -> None:
    for layout in ("NCHW", "NHWC"):
        check_fusion(IdentityFusion(), layouts=(layout,))
    x = torch.randn(2, 14, 16)
    junctions = FUSIONS.build(dict(type="IdentityFusion")).build([TOKENS] * 4, [TOKENS] * 4, Splice.parse("S1-4+Thead"))
    assert junctions["S4_T5"](x) is x


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
