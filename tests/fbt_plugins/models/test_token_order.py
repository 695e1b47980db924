"""Where tokens stand: found by what a changed patch changes, and held against what is said of them."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fbt_plugins import ARCHITECTURES, ConfigError, StagedModel
from fbt_plugins.models.proof import SplitError


class Tokens(nn.Module):
    """A small transformer whose tokens may be shuffled, merged, or have their class token behind them."""

    def __init__(self, shuffled: bool = False, merged: bool = False, last: bool = False) -> None:
        super().__init__()
        self.embed, self.last = nn.Conv2d(3, 16, 8, 8), last
        self.cls = nn.Parameter(torch.randn(1, 1, 16))
        order = torch.randperm(16, generator=torch.Generator().manual_seed(0)) if shuffled else torch.arange(16)
        self.register_buffer("shuffle", order)
        layers = [nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True, norm_first=True) for _ in range(4)]
        self.blocks = nn.Sequential(*layers)
        if merged:
            self.blocks[1] = nn.Sequential(layers[1], Merge())
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)[:, self.shuffle]
        cls = self.cls.expand(x.size(0), -1, -1)
        x = self.blocks(torch.cat([x, cls] if self.last else [cls, x], 1))
        return self.fc(x.mean(1))


class Merge(nn.Module):
    """Eight tokens of all."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(8, 16))

    def forward(self, x: Tensor) -> Tensor:
        return (self.queries @ x.transpose(1, 2)).softmax(-1) @ x


class Windows(nn.Module):
    """Tokens in the order of Hiera: the first of each of four windows, then the second; layers mix within a window."""

    class Mix(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.fc(x.unflatten(1, (4, 4)).mean(1)).repeat(1, 4, 1)

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc = nn.Conv2d(3, 16, 8, 8), nn.Linear(16, 10)
        self.blocks = nn.Sequential(*(self.Mix() for _ in range(4)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).unflatten(3, (2, 2)).unflatten(2, (2, 2))
        return self.fc(self.blocks(x.permute(0, 3, 5, 2, 4, 1).flatten(1, 4)).mean(1))


def order_of(net: nn.Module, grid: tuple[int, int]) -> Tensor:
    return net.shuffle.argsort()  # type: ignore[operator]


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch) -> Callable[..., StagedModel]:
    module = types.ModuleType("my_tokens")
    vars(module).update(net=Tokens, windows=Windows, order=order_of, wrong=lambda net, grid: torch.arange(16))
    monkeypatch.setitem(sys.modules, "my_tokens", module)

    def build(**arguments: Any) -> StagedModel:
        torch.manual_seed(0)
        return ARCHITECTURES.build(dict(type="module", path="my_tokens:net", image_size=32) | arguments)

    return build


def test_tokens_are_found_where_their_patches_were(tokens: Callable[..., StagedModel]) -> None:
    model = tokens()
    assert [str(s) for s in model.specs] == ["NLC 16 x 4x4 + 1 prefix tokens"] * 4
    assert model.verify().tokens == 4
    with pytest.raises(
        ConfigError,
        match=r"stage 1 .* 4x4 grid row by row behind 1 prefix tokens, but the patch of row.*_order\.py:\d+\); cut",
    ):
        tokens(shuffled=True, verify=False)


def test_tokens_behind_the_grid_stand_before_it_in_what_a_stage_gives(tokens: Callable[..., StagedModel]) -> None:
    model = tokens(last=True).eval()
    assert [str(s) for s in model.specs] == ["NLC 16 x 4x4 + 1 prefix tokens"] * 4
    assert model.verify().tokens == 4
    images = torch.randn(2, 3, 32, 32)
    given = model.stage_outputs(images, [4])[4]
    own = model.net.blocks(torch.cat([model.net.embed(images).flatten(2).mT, model.net.cls.expand(2, -1, -1)], 1))
    assert torch.equal(given, torch.cat([own[:, -1:], own[:, :-1]], 1))


def test_an_order_can_be_given_and_is_probed_too(tokens: Callable[..., StagedModel]) -> None:
    model = tokens(shuffled=True, order="my_tokens:order")
    assert model.specs[3].order is not None and model.verify().tokens == 4
    assert not tokens(shuffled=True, raster=False).specs[0].raster
    with pytest.raises(SplitError, match="in the order given behind 1 prefix tokens, but the patch"):
        tokens(shuffled=True, order="my_tokens:wrong")
    with pytest.raises(ConfigError, match=r"^order: my_tokens has no function 'ordre'; did you mean 'order'"):
        tokens(order="my_tokens:ordre")


def test_tokens_of_windows_are_no_small_grid_behind_many_others(tokens: Callable[..., StagedModel]) -> None:
    with pytest.raises(ConfigError, match=r"stage 1 is said to give the tokens of a 4x4 grid row by row, but"):
        tokens(path="my_tokens:windows")


def test_merged_tokens_are_no_grid(tokens: Callable[..., StagedModel]) -> None:
    later = ["blocks.1", "blocks.2", "blocks.3"]
    with pytest.raises(
        ConfigError, match=r"stage 1 .* 2x2 grid row by row behind 4 prefix tokens, but .*cut before tokens are merged"
    ):
        tokens(merged=True, stages=later)
    with pytest.raises(
        ConfigError, match=r"behind 'blocks.3' 8 tokens cross, and none is that of a patch of the image"
    ):
        tokens(merged=True, stages=["blocks.0", "blocks.3"], prefix_tokens=1, verify=False)
