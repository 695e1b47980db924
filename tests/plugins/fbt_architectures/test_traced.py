"""The traced way: cuts of networks that no declaration covers are exact, or refused with the reason."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import EDGES, TASK
from fbt_architectures.cut_points import from_feature_info
from fbt_architectures.traced_cut import cut_by_trace
from torch import Tensor, nn

from fbt_plugins import ARCHITECTURES, ConfigError, FBTError, StagedModel
from fbt_plugins.distill.distiller import Distiller


class Net(nn.Module):
    """Four blocks that call each other in ``forward``; subclasses change one thing each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8 * 2**i, 16 * 2**i, 3, 2, 1), nn.BatchNorm2d(16 * 2**i), nn.ReLU())
            for i in range(3)
        )
        self.fc = nn.Linear(64, 5)

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))


def cut(net: nn.Module, stages: Any = None, **about: Any) -> StagedModel:
    torch.manual_seed(0)
    return cut_by_trace(net, stages, name="net", **({"image_size": (32, 32)} | about))


def test_a_network_without_any_declaration_is_cut_at_its_resolutions() -> None:
    model = cut(Net())
    assert model.way == "traced" and model.family == "cnn"
    assert [str(s) for s in model.specs] == ["NCHW 8 x 16x16", "NCHW 16 x 8x8", "NCHW 32 x 4x4", "NCHW 64 x 2x2"]
    proof = model.verify()
    assert proof.gradients == proof.parameters == 16 and proof.buffers == 9
    assert model.macs_at((32, 32))[0] == 3 * 8 * 9 * 16 * 16 and model.macs_at((32, 32))[4] == 64 * 5


def test_a_device_that_a_network_asks_for_is_that_of_its_input() -> None:
    class Positions(Net):
        def features(self, x: Tensor) -> Tensor:
            x = super().features(x)
            ramp = torch.arange(64, device=x.device).to(device=self.fc.weight.device, dtype=x.dtype)
            return x + ramp[:, None, None]

    model = cut(Positions())
    model.verify()
    moved = model.to("meta")  # the one other device that is everywhere
    assert moved(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 5)


def test_cuts_can_be_named_and_counted() -> None:
    assert [s.channels for s in cut(Net(), ["blocks.0", "blocks.2"]).specs] == [16, 64]
    assert len(cut(Net(), 3).stages) == 3
    with pytest.raises(ConfigError, match=r"no module 'block\.1' to cut behind; did you mean 'blocks\.1'"):
        cut(Net(), ["block.1", "blocks.2"])
    with pytest.raises(ConfigError, match=r"'stem' does not run behind 'blocks\.1'"):
        cut(Net(), ["blocks.1", "stem"])


def test_where_there_are_fewer_resolutions_than_stages_the_longest_is_shared_out() -> None:
    class Flat(Net):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, 2 if i == 1 else 1, 1) for i in range(5))
            self.fc = nn.Linear(8, 5)

    model = cut(Flat())
    assert [s.grid for s in model.specs] == [(16, 16), (16, 16), (8, 8), (8, 8)]
    model.verify()


def test_feature_info_of_four_modules_names_the_stages_whatever_their_resolutions() -> None:
    net = Net()
    names = ("stem", "blocks.0", "blocks.1", "blocks.2")
    net.feature_info = [dict(module=name, reduction=r) for name, r in zip(names, (2, 4, 4, 4), strict=True)]  # type: ignore[assignment]
    assert from_feature_info(net) == list(names)
    net.feature_info[1:] = [dict(module="elsewhere", reduction=4)]  # type: ignore[index]
    assert from_feature_info(net) is None


def test_another_image_size_is_traced_when_it_comes_and_others_share_the_code() -> None:
    class Resizing(Net):
        def forward(self, x: Tensor) -> Tensor:
            size = x.shape[2] // 4
            return self.fc(F.adaptive_avg_pool2d(F.interpolate(self.features(x), (size, size)), 1).flatten(1))

    model = cut(Resizing())
    twin = copy.deepcopy(model)
    images = torch.rand(2, 3, 48, 48)
    assert torch.equal(model(images), model.net(images))
    assert torch.equal(twin.eval()(images), twin.net(images))
    assert twin.stages[0].code is model.stages[0].code
    assert model.specs_at((64, 32))[3].grid == (4, 2)
    model.verify((64, 32))


def test_a_part_that_meets_an_input_of_another_size_says_so() -> None:
    model = cut(Net())
    with pytest.raises(FBTError, match=r"part 3 takes 16x8x8, not 16x9x9: run the parts before it first"):
        model.stages[2](torch.rand(1, 16, 9, 9))


def test_what_depends_on_the_mode_is_traced_in_both() -> None:
    class Modes(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.features(x)
            if self.training:
                x = F.dropout(x, 0.5, training=True) + 1
            return self.fc(x.mean((2, 3)))

    model = cut(Modes())
    model.verify()
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(model.eval()(images), model.net(images))


def test_parameters_buffers_and_tensors_of_the_network_itself_are_followed() -> None:
    class Own(Net):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.rand(1, 8, 1, 1))
            self.register_buffer("offset", torch.rand(1, 64))
            self.table = torch.arange(64.0)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x) * self.gain.expand(x.shape[0], -1, -1, -1)
            for block in self.blocks:
                x = block(x)
            batch, width = x.shape[:2]
            x = x.reshape(batch, width, -1).mean(2) + self.offset + self.table + torch.ones(width)
            return self.fc(x)

    model = cut(Own(), ["stem", "blocks.0", "blocks.1", "blocks.2"])
    model.verify()
    assert [n for n, _ in model.stages[0].named_parameters()] == ["stem.weight", "stem.bias"]
    assert next(n for n, _ in model.stages[1].named_parameters()) == "gain"
    model.double()
    images = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    assert torch.equal(model(images), model.net(images)) and model(images).dtype == torch.float64
    with torch.no_grad():
        model.net.offset.add_(1)
    assert torch.equal(model.eval()(images), model.net(images))


class Skip(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        a = self.blocks[0](x)
        b = self.blocks[1](a)
        return self.fc((self.blocks[2](b) + F.max_pool2d(torch.cat([a] * 4, 1), 4)).mean((2, 3)))


class Shared(Net):
    def __init__(self) -> None:
        super().__init__()
        self.same, self.middle, self.fc = nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.same(self.stem(x)))
        return self.fc(self.same(x).mean((2, 3)))


class Batches(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.shape[0] > 2 else super().forward(2 * x)


class Values(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.fc((x if x.sum() > 0 else -x).mean((2, 3)))


class Loops(Net):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.fc(row.mean((1, 2))) for row in self.features(x)])


class Draws(Net):
    draw: Any = staticmethod(random.random)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if self.draw() < 0.5 else 2 * x)


class Two(Net):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x), x


REFUSED = {
    "two tensors": (Skip(), "behind 'blocks.1' later layers need .*16x8x8 per image and .*32x4x4 per image"),
    "batch size": (Batches(), "depends on the batch size"),
    "values": (Values(), "depends on the batch size or on values"),
    "loop": (Loops(), "loops over the images"),
    "random": (Draws(), "draws random numbers outside of its layers"),
    "two outputs": (Two(), "not logits"),
}


@pytest.mark.parametrize(("net", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_a_trace_cannot_follow_is_refused_in_one_line(net: nn.Module, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        cut(net, ["stem", "blocks.0", "blocks.1", "blocks.2"])
    assert "\n" not in str(caught.value) and str(caught.value).startswith("net: ")


@pytest.mark.parametrize("draw", [lambda: np.random.rand(), lambda: torch.rand(()).item()], ids=["numpy", "torch"])
def test_random_numbers_of_other_libraries_are_seen_too(draw: Any) -> None:
    net = Draws()
    net.draw = draw
    with pytest.raises(ConfigError, match=r"draws random numbers .*test_traced\.py:\d+\); let a layer draw them"):
        cut(net)


def test_forward_hooks_that_would_not_run_are_refused() -> None:
    net = Net()
    net.register_forward_hook(lambda module, args, output: output * 2)
    with pytest.raises(ConfigError, match="Net has forward hooks"):
        cut(net)


def test_weights_used_in_two_stages_are_refused() -> None:
    with pytest.raises(ConfigError, match="net: same is used in stage 1 and in the head"):
        cut(Shared(), ["middle"])


def test_what_is_never_run_or_has_two_names_is_in_one_part_all_the_same() -> None:
    class Spare(Net):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
            self.alias = self.blocks[1]

    model = cut(Spare())
    assert model.verify().parameters == 20
    assert "unused_0_weight" in dict(model.head.named_parameters())


class Permuting(Net):
    """Its maps have as many channels as rows and columns, in either layout."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first, self.norm = first, nn.LayerNorm(8)
        self.mixer = nn.Sequential(nn.Linear(8, 8), nn.GELU())
        self.last, self.fc = (nn.Conv2d(8, 8, 1) if first else nn.Linear(8, 8)), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mixer(self.norm(self.stem(x).permute(0, 2, 3, 1)))
        x = self.last(x.permute(0, 3, 1, 2) if self.first else x)
        return self.fc(x.mean((2, 3) if self.first else (1, 2)))


def test_a_layout_that_sizes_leave_open_is_read_off_how_the_map_is_used() -> None:
    for first, layouts in ((True, ["NCHW", "NHWC", "NCHW"]), (False, ["NCHW", "NHWC", "NHWC"])):
        model = cut(Permuting(first), ["stem", "mixer", "last"], image_size=(16, 16))
        assert [(s.layout, s.channels, s.grid) for s in model.specs] == [(n, 8, (8, 8)) for n in layouts]
        model.verify()
    told = cut(Permuting(True), ["stem", "last"], image_size=(16, 16), layout=["NHWC", "NCHW"])
    assert [s.layout for s in told.specs] == ["NHWC", "NCHW"]


def test_random_numbers_are_as_before_and_the_network_is_untouched() -> None:
    net = Net().eval()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    model = cut_by_trace(net, name="net", image_size=(32, 32))
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert model.net is net and not net.training and not hasattr(net, "_tensor_constant0")


# Small models of families that no declaration covers; the slow test has all of them.
SMALL: dict[str, tuple[dict[str, Any], str]] = {
    "test_byobnet": ({}, "cnn"),
    "test_nfnet": ({}, "cnn"),
    "test_mambaout": ({}, "cnn"),
    "test_coatnet": ({}, "hybrid"),
    "test_vit_relpos": ({}, "attention"),
    "beit_base_patch16_224": (dict(img_size=32, depth=5, embed_dim=24, num_heads=2), "attention"),
    "eva02_tiny_patch14_224": (dict(img_size=28, depth=4, embed_dim=24, num_heads=2), "attention"),
    "cait_xxs24_224": (dict(img_size=32, depth=4, embed_dim=24, num_heads=2), "attention"),
    "xcit_nano_12_p16_224": (dict(img_size=64, depth=4), "attention"),
    "convit_tiny": (dict(img_size=32, depth=4), "attention"),
    "deepseek_vit_412m": (dict(img_size=56, depth=4, embed_dim=64, num_heads=2), "attention"),
    "qwen3_vit_88m": (dict(img_size=64, depth=4, embed_dim=64, num_heads=2), "attention"),
    "swinv2_cr_tiny_ns_224": (
        dict(img_size=64, window_size=2, depths=(1, 1, 1, 1), embed_dim=32, num_heads=(1, 2, 4, 8)),
        "attention",
    ),
    "pvt_v2_b0": ({}, "attention"),
    "twins_svt_small": (dict(img_size=64, depths=(1, 1, 1, 1), embed_dims=(16, 16, 16, 16)), "attention"),
    "levit_128s": (dict(img_size=64, embed_dim=(16, 24, 32), num_heads=(1, 2, 2), depth=(1, 1, 1)), "hybrid"),
    "visformer_tiny": (dict(img_size=64), "hybrid"),
    "edgenext_xx_small": ({}, "hybrid"),
    "regnetx_002": ({}, "cnn"),
    "densenet121": (dict(block_config=(1, 1, 1, 1), growth_rate=8), "cnn"),
    "dla46x_c": ({}, "cnn"),
    "mobilenetv3_small_050": ({}, "cnn"),
    "mobilevit_xxs": ({}, "hybrid"),
}
DEFAULT = (
    *("test_byobnet", "test_coatnet", "densenet121"),  # at the last four resolutions, maps in rows
    *("test_mambaout", "twins_svt_small"),  # the same: channels last, tokens
    *("test_vit_relpos", "beit_base_patch16_224", "cait_xxs24_224"),  # after 2 : 2 : n - 6 : 2 blocks
    "levit_128s",  # three resolutions, and the stem; two heads
)
"""One or a few for each way in which timm's ``feature_info`` tells where to cut; the others run with ``-m slow``."""
SIZES = {"test_coatnet": 160, "test_vit_relpos": 160}


@pytest.mark.parametrize("name", [n if n in DEFAULT else pytest.param(n, marks=pytest.mark.slow) for n in SMALL])
def test_families_of_timm_are_cut_exactly(name: str) -> None:
    arguments, family = SMALL[name]
    model = ARCHITECTURES.build(dict(type="timm", name=name, num_classes=7, **arguments))
    size = arguments.get("img_size", SIZES.get(name, 64))
    proof = model.verify(size)
    assert proof.gradients > 0 and len(model.stages) == 4 and model.way == "traced"
    assert model.family == family


IN_PLACE = {
    "alexnet": ("torchvision", 96),
    "vgg11_bn": ("torchvision", 64),
    "densenet121": ("torchvision", 64),
    "shufflenet_v2_x0_5": ("torchvision", 64),
    "mnasnet0_5": ("torchvision", 64),
    "squeezenet1_1": ("torchvision", 64),
    "hrnet_w18_small": ("timm", 64),
    "selecsls42": ("timm", 64),
}
"""Real networks whose in-place layers write to what is kept of a stage."""


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_PLACE)
def test_networks_with_layers_in_place_are_cut_exactly_and_fuse_alike_whoever_is_asked(name: str) -> None:
    type_, size = IN_PLACE[name]
    network = dict(type=type_, name=name, num_classes=10)
    assert ARCHITECTURES.build(network).verify(size).stages == 4
    teacher = dict(type="timm", name="test_resnet", num_classes=10)
    given = dict(edges=EDGES, feature_loss=dict(type="InfoNCELoss"), logit_loss=dict(type="OFALoss"), task_loss=TASK)
    torch.manual_seed(0)
    fusion = dict(type="L2GFusion", splice="S1-3+T4")
    model = Distiller(network, teacher, fusion=fusion, image_size=(size, size), **given).eval()  # type: ignore[arg-type]
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        alone, beside = (model.predict(images, names)["fusion"] for names in (["fusion"], ["student", "fusion"]))
    assert torch.equal(alone, beside)


# ---- what other libraries' networks do ------------------------------------------------------------------------------


class Pairs(nn.Module):
    """A transformer as vit-pytorch writes them: blocks are lists that the network adds up by itself."""

    def __init__(self, depth: int = 5, width: int = 8) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 8, 8)
        self.layers = nn.ModuleList(
            nn.ModuleList([self.unit(width, width), self.unit(width, 2 * width)]) for _ in range(depth)
        )
        self.fc = nn.Linear(width, 3)

    @staticmethod
    def unit(width: int, hidden: int) -> nn.Module:
        return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def tokens(self, x: Tensor) -> Tensor:
        return self.patch(x).flatten(2).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x)
        for attention, feed_forward in self.layers:  # type: ignore[misc]
            x = attention(x) + x
            x = feed_forward(x) + x
        return self.fc(x.mean(1))


def test_blocks_that_are_lists_are_cut_behind_each_list() -> None:
    model = cut(Pairs())
    assert model.stages[0].code.points == tuple(f"layers.{i}.1.3" for i in (0, 1, 3, 4))
    model.verify()
    assert cut(Pairs(), ["layers.1", "layers.4"]).stages[0].code.points == ("layers.1", "layers.4")


def test_functions_that_timm_keeps_out_of_traces_or_that_make_tensors_are_leaves() -> None:
    class Positions(Pairs):
        def tokens(self, x: Tensor) -> Tensor:
            x = super().tokens(x)
            ramp = torch.arange(x.shape[1], device=x.device, dtype=x.dtype).type(x.dtype)
            return x + ramp[:, None] + torch.zeros(x.shape[0], 1, 1, device=x.device)

    before = torch.arange, torch.Tensor.type
    model = cut(Positions())
    model.verify()
    assert (torch.arange, torch.Tensor.type) == before and "type" not in vars(torch.Tensor)


def test_functions_of_einops_are_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    einops = pytest.importorskip("einops")
    monkeypatch.setitem(globals(), "merge", einops.rearrange)

    class Merging(Pairs):
        def tokens(self, x: Tensor) -> Tensor:
            tokens = merge(self.patch(x), "b c h w -> b (h w) c")  # type: ignore[name-defined] # noqa: F821
            packed, shape = einops.pack([tokens], "* n d")
            return einops.unpack(packed, shape, "* n d")[0]

    cut(Merging()).verify()


def test_a_sequence_made_on_the_way_is_what_is_in_it() -> None:
    class Made(Net):
        def features(self, x: Tensor) -> Tensor:
            return nn.Sequential(self.stem, *self.blocks)(x)

    cut(Made()).verify()


class AtTheEnd(Net):
    """Network in network: the classifier is a 1x1 convolution before the pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Conv2d(64, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


def test_no_cut_is_behind_the_classifier() -> None:
    model = cut(AtTheEnd())
    assert model.stages[0].code.points[-1] == "blocks.2.1" and model.num_features == 64
    model.verify()
    with pytest.raises(
        ConfigError, match=r"'fc' holds the classifier or runs behind it; the head begins in front of it"
    ):
        cut(AtTheEnd(), ["blocks.0", "fc"])


class Autocast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        on = torch.is_autocast_enabled(x.device.type)
        x = x.to(torch.get_autocast_dtype(x.device.type) if on else x.dtype)
        with torch.autocast(device_type=x.device.type, enabled=False):
            return x * 2


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net.blocks[0].append(Autocast()),
        lambda net: nn.SyncBatchNorm.convert_sync_batchnorm(net),
        lambda net: [setattr(m, "momentum", None) for m in net.modules() if isinstance(m, nn.BatchNorm2d)],
    ],
    ids=["autocast", "SyncBatchNorm", "momentum"],
)
def test_layers_that_look_at_their_device_or_count_steps_are_measured(change: Any) -> None:
    net = Net()
    change(net)
    before = torch.autocast.__init__, torch.is_autocast_enabled
    cut(net).verify()
    assert (torch.autocast.__init__, torch.is_autocast_enabled) == before


def test_a_part_that_torch_jit_compiled_is_one_line() -> None:
    net = Net()
    net.blocks[1] = torch.jit.trace(net.blocks[1].eval(), torch.rand(1, 16, 8, 8))
    with pytest.raises(ConfigError, match=r"net: blocks\.1 was compiled by torch\.jit.*build the network without"):
        cut(net)


class Rotary(nn.Module):
    """Positions by number: of the tokens that it is given it reads the number, dtype and device."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("speeds", torch.rand(width))

    @torch.autocast("cpu", enabled=False)
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        angles = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)[:, None] @ self.speeds[None].to(x)
        return angles.sin(), angles.cos()


class Turned(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(width, 128), nn.Linear(128, width))

    def forward(self, x: Tensor, positions: tuple[Tensor, Tensor]) -> Tensor:
        return x + self.fc(x) * positions[0] + positions[1]


class Tokens(nn.Module):
    """A row of blocks that are given positions, in lists of some length."""

    def __init__(self, lists: int = 1, blocks: int = 4, rotary: bool = True) -> None:
        super().__init__()
        self.embed, self.rotary, self.fc = nn.Conv2d(3, 8, 8, 8), Rotary(8) if rotary else None, nn.Linear(8, 5)
        for i in range(lists):
            setattr(self, f"blocks{i}", nn.ModuleList(Turned(8) for _ in range(blocks)))
        self.count = lists

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        positions = (x.new_zeros(()), x.new_zeros(())) if self.rotary is None else self.rotary(x)
        for i in range(self.count):
            for block in getattr(self, f"blocks{i}"):
                x = block(x, positions)
        return self.fc(x.mean(1))


def test_what_reads_no_pixels_is_computed_again_behind_a_cut_with_its_own_autocast() -> None:
    model = cut(Tokens())
    assert [str(s) for s in model.specs] == ["NLC 8 x 4x4"] * 4 and model.verify().buffers == 1
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected, found = model.net(images), model.eval()(images)
        assert torch.equal(model.stages[0](images), model.net.blocks0[0](*tokens_and_positions(model.net, images)))
    assert torch.equal(expected, found)


def tokens_and_positions(net: nn.Module, images: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    tokens: Tensor = net.embed(images).flatten(2).transpose(1, 2)  # type: ignore[operator]
    return tokens, net.rotary(tokens)  # type: ignore[operator]


def test_blocks_in_short_lists_are_shared_out_by_their_weights() -> None:
    model = cut(Tokens(lists=3, blocks=2))
    assert model.stages[0].code.points == ("blocks0.0", "blocks1.0", "blocks1.1", "blocks2.1")  # type: ignore[union-attr]
    model.verify()


class PatchDrop(Tokens):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[..., :16] if self.training else x)


class Unfit(Net):
    def features(self, x: Tensor) -> Tensor:
        return super().features(F.layer_norm(x, (7,)))


class Item(Net):
    def features(self, x: Tensor) -> Tensor:
        return super().features(x) * (x > 0).all().item()


class Named(Net):
    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"answer": super().forward(x)}


class Unique(Net):
    def features(self, x: Tensor) -> Tensor:
        return super().features(x) * len(x.unique())


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (PatchDrop(), r"per image 8x8 in training and 16x8 in eval mode \(.*test_traced.py:\d+\); where it drops"),
        (Unfit(), r"takes no images of 32x32 pixels, and raises RuntimeError: .*test_traced.py:\d+\); mend it, or set"),
        (Named(), r"its forward gives an object with 'answer', not logits"),
        (Item(), r"depends on values of a tensor \(Tensor.item\) \(.*test_traced"),
        (Unique(), r"depends on values of a tensor \(aten::\w+\) \(.*test_traced.py:\d+\)"),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), r"has no classifier; give it one, or .*num_classes=0"),
    ],
    ids=["dropped tokens", "the network itself", "an object", "an item", "values", "no classifier"],
)
def test_a_refusal_says_whose_fault_it_is_and_what_to_do(net: nn.Module, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        cut(net)


class Listing(Net):
    """An encoder's list of all resolutions, of which the head takes the last, and something that nobody takes."""

    def features(self, x: Tensor) -> Tensor:
        found = [x]
        for layer in (self.stem, *self.blocks):
            found.append(layer(found[-1]))
        _ = x.new_empty(x.shape) + found[1].mean()
        return found[-1]


def test_what_nobody_takes_does_not_cross() -> None:
    assert len(cut(Listing(), ["stem", "blocks.0", "blocks.1", "blocks.2"]).stages) == 4


def test_a_refusal_names_the_networks_own_line_and_what_to_try() -> None:
    with pytest.raises(ConfigError, match=r"values of a tensor \(.*test_traced\.py:\d+\); .* stages=\[.*head='... fc'"):
        cut(Values())


class Sharing(Net):
    """Its blocks have a layer of their own and a gain; some share theirs."""

    def __init__(self, gains: tuple[int, ...], direct: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in gains)
        self.gains = nn.ParameterList(nn.Parameter(torch.rand(8, 1, 1)) for _ in set(gains))
        self.scales = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in set(gains))
        self.order, self.direct, self.fc = gains, direct, nn.Linear(8, 5)

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block, gain in zip(self.blocks, self.order, strict=True):
            x = block(x)
            x = x * self.gains[gain].exp() if self.direct else self.scales[gain](x)
        return x


@pytest.mark.parametrize("direct", [False, True], ids=["a layer", "a tensor"])
def test_no_cut_is_between_two_uses_of_a_weight(direct: bool) -> None:
    model = cut(Sharing((0, 0, 0, 1, 2, 3, 4, 5), direct))
    assert len(model.stages) == 4 and not {"blocks.1", "blocks.2"} & set(model.stages[0].code.points)  # type: ignore[union-attr]
    model.verify()


def test_a_weight_that_all_stages_use_is_refused_with_its_line_and_the_places_that_there_are() -> None:
    with pytest.raises(
        ConfigError,
        match=r"is used in stage 1 and in stage 2.* \(.*test_traced\.py:\d+\); cut there: stages=3, or name",
    ):
        cut(Sharing((0,) * 8))
    with pytest.raises(
        ConfigError, match=r"used in stage \d and in .*test_traced\.py:\d+\); cut where all that use it"
    ):
        cut(Sharing((0, 0, 0, 0)), ["blocks.0", "blocks.1"])
