"""The traced way: cuts of networks that no declaration covers are exact."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from fbt_architectures.cut_points import from_feature_info
from fbt_architectures.traced_cut import cut_by_trace
from networks import Net, Tokens, cut
from torch import Tensor, nn

from fbt_plugins import ConfigError, FBTError


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


def test_blocks_in_short_lists_are_shared_out_by_their_weights() -> None:
    model = cut(Tokens(lists=3, blocks=2))
    assert model.stages[0].code.points == ("blocks0.0", "blocks1.0", "blocks1.1", "blocks2.1")  # type: ignore[union-attr]
    model.verify()


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
