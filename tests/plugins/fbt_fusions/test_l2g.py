import pytest
import torch
from fbt_fusions.l2g import L2GFusion
from fbt_fusions.projector import PatchEmbedding
from timm.models.swin_transformer import SwinTransformerBlock

from fbt_plugins import FUSIONS, FromMap, ToMap
from fbt_plugins.distill.splice import Splice
from fbt_plugins.errors import ConfigError
from fbt_plugins.models.staged import StageSpec

MAP = StageSpec("NCHW", 24, (8, 8))
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


def sample(spec: StageSpec, n: int = 2) -> torch.Tensor:
    h, w = spec.grid
    shapes = {
        "NCHW": (n, spec.channels, h, w),
        "NHWC": (n, h, w, spec.channels),
        "NLC": (n, spec.prefix_tokens + h * w, spec.channels),
    }
    return torch.randn(shapes[spec.layout], generator=torch.Generator().manual_seed(0))


def junction(source: StageSpec, target: StageSpec) -> torch.nn.Module:
    specs = [source] * 3, [target] * 4
    return L2GFusion(head_dim=8).build(*specs, Splice.parse("S1-3+T4", 3 + 1, 4))["S3_T4"]


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_lands_on_what_the_next_stage_takes(source: StageSpec, target: StageSpec) -> None:
    module = junction(source, target)
    x = sample(source).requires_grad_()
    y = module(x)
    assert y.shape == sample(target).shape
    y.square().sum().backward()
    assert torch.isfinite(x.grad).all()
    kept = x.grad[:, source.prefix_tokens :] if source.layout == "NLC" else x.grad
    assert (kept.flatten(1).abs().sum(1) > 0).all()
    assert all(p.grad is not None for p in module.parameters())


def test_is_a_patch_embedding_and_a_swin_block() -> None:
    kinds = [type(m) for m in junction(MAP, TARGETS[0]).modules()]
    assert kinds.count(PatchEmbedding) == kinds.count(SwinTransformerBlock) == 1


def test_patch_embedding_is_a_convolution_whose_kernel_is_its_stride() -> None:
    embedding = PatchEmbedding(MAP, StageSpec("NCHW", 48, (4, 4)))
    assert embedding.proj.kernel_size == embedding.proj.stride == (2, 2)
    x = sample(MAP)
    torch.testing.assert_close(embedding(x), embedding.norm(embedding.proj(x).permute(0, 2, 3, 1)))


@pytest.mark.parametrize(("grid", "window"), [((4, 4), (4, 4)), ((7, 7), (7, 7)), ((14, 14), (7, 7)), ((5, 9), (5, 7))])
def test_window_is_the_grid_or_seven_whichever_is_smaller(grid: tuple[int, int], window: tuple[int, int]) -> None:
    block = next(m for m in junction(MAP, StageSpec("NCHW", 32, grid)).modules() if isinstance(m, SwinTransformerBlock))
    assert block.window_size == window


def test_tokens_stay_in_raster_order() -> None:
    """Identity weights must bring position (i, j) of a map to token i * width + j."""
    source, target = StageSpec("NCHW", 4, (2, 3)), StageSpec("NLC", 4, (2, 3), prefix_tokens=1)
    to_map, embed, _, from_map = junction(source, target)
    embed.norm = torch.nn.Identity()
    with torch.no_grad():
        embed.proj.weight.copy_(torch.eye(4)[:, :, None, None])
        embed.proj.bias.zero_()
    x = torch.arange(24.0).reshape(1, 4, 2, 3)
    tokens = from_map(embed(to_map(x)))
    assert torch.equal(tokens[0, 1:], x[0].flatten(1).T)


def test_prefix_tokens_are_learned_and_start_from_the_owners_own() -> None:
    own = torch.randn(1, 48)
    module = junction(MAP, StageSpec("NLC", 48, (4, 4), 1, prefix=own))
    assert torch.equal(module(sample(MAP))[:, :1], own.expand(2, 1, 48))
    assert module[-1].prefix.requires_grad


def test_tokens_of_an_order_of_their_own_are_put_in_place_or_refused() -> None:
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    known = StageSpec("NLC", 24, (4, 4), 1, raster=False, order=order)
    tokens = sample(known)
    as_map = ToMap(known)(tokens)
    assert torch.equal(as_map[0, :, 1, 2], tokens[0, 1 + order[6]])
    assert torch.equal(FromMap(known)(as_map.permute(0, 2, 3, 1))[:, 1:], tokens[:, 1:])
    assert not junction(known, known).state_dict().keys() & {"0.order", "3.order"}  # the model knows it: not saved
    unknown = StageSpec("NLC", 24, (4, 4), 1, raster=False)
    for source, target in ((unknown, MAP), (MAP, unknown)):
        with pytest.raises(ConfigError, match="the tokens come in an order of the model's own"):
            junction(source, target)


def test_wrong_arguments_are_config_errors() -> None:
    with pytest.raises(ConfigError, match="must be positive"):
        FUSIONS.build(dict(type="L2GFusion", window=0))
    with pytest.raises(ConfigError, match="no argument 'windw'; did you mean 'window'"):
        FUSIONS.build(dict(type="L2GFusion", windw=7))
