"""What a trace does not look into, and what it computes again behind a cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import Net, Tokens, cut
from torch import Tensor, nn


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
