"""Networks that do what few do: a proof must neither be fooled by them nor fail at them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fbt_architectures.traced_cut import cut_by_trace
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fbt_plugins import StagedModel
from fbt_plugins.models.proof import SplitError


class Net(nn.Module):
    """Four strided convolutions, each with a norm, and a classifier; subclasses change one thing each."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(3 if i == 0 else 8, 8, 3, 2, 1), nn.BatchNorm2d(8)) for i in range(4)
        )
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x).relu()
        return self.fc(x.mean((2, 3)))


def traced(net: nn.Module, **about: Any) -> StagedModel:
    torch.manual_seed(0)
    return cut_by_trace(net, name="net", image_size=(32, 32), **about)


class Again(nn.Module):
    """A layer whose activations are computed again in the backward pass, as ``use_checkpoint=True`` of many does."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.layer, x, use_reentrant=True)


def test_a_head_may_compute_its_layers_again() -> None:
    net = Net()
    net.fc = nn.Sequential(Again(nn.Linear(8, 8)), net.fc)  # type: ignore[assignment]
    proof = traced(net).verify()
    assert proof.features and proof.gradients == proof.parameters


class Store(nn.Module):
    """Leaves what it is given where another layer looks."""

    kept: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.kept = x
        return x


class Looks(nn.Module):
    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store = [store]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.store[0].kept.mean()


@pytest.mark.parametrize(
    ("store", "look", "who"), [(1, 3, "stage 4"), (1, "head", "the head"), (3, "head", "the head")]
)
def test_a_part_may_look_at_nothing_that_another_has_left(store: int, look: int | str, who: str) -> None:
    net = Net()
    net.blocks[store].insert(0, left := Store())
    if look == "head":
        net.fc = nn.Sequential(Looks(left), net.fc)  # type: ignore[assignment]
    else:
        net.blocks[int(look)].insert(0, Looks(left))
    with pytest.raises(SplitError, match=f"{who} gives something else for the same input once other images"):
        traced(net).verify()


class Scaled(nn.Sequential):
    """A block with a number that its network sets each time."""

    scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


def test_what_a_network_leaves_in_its_layers_is_not_there_for_its_stages() -> None:
    class Sets(Net):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Scaled(*block) for block in self.blocks)

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                block.scale = x.shape[2] / 16
            return super().forward(x)

    with pytest.raises(SplitError, match="logits in eval mode differ"):
        traced(Sets()).verify()


@pytest.mark.parametrize("always", [True, False])
def test_probabilities_are_no_logits(always: bool) -> None:
    class Softmax(Net):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            return logits.softmax(1) if always or not self.training else logits

    with pytest.raises(SplitError, match=r"its outputs in eval mode are probabilities, .* leave out the softmax"):
        traced(Softmax()).verify()


class Transposed(Net):
    """Channels last by ``transpose(1, 3)``, which swaps rows and columns."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for block, mix in zip(self.blocks, self.mix, strict=True):
            x = mix(block(x).transpose(1, 3)).relu().transpose(1, 3)
        return self.fc(x.mean((2, 3)))


class Turned(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flip(2, 3))


class Heads(nn.Module):
    """(N, heads, tokens, width) with as many tokens as channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.fc = nn.Conv2d(3, 64, 8, 8), nn.Linear(64, 5)
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2).unflatten(2, (4, 16)).transpose(1, 2)
        for block in self.blocks:
            x = x + block(x).relu()
        return self.fc(x.transpose(1, 2).flatten(2).mean(1))


@pytest.mark.parametrize(
    ("net", "names", "what"),
    [
        (
            Transposed,
            ["blocks.0", "mix.0", "mix.2"],
            "stage 2 is said to give NHWC 8 x 16x16, but its rows and columns",
        ),
        (Turned, None, "stage 1 is said to give NCHW 8 x 16x16, but it is turned round"),
        (Heads, ["patch", "blocks.0", "blocks.3"], "stage 2 .* but it follows the rows of an image alone"),
    ],
)
def test_maps_lie_as_their_images_do(net: type[nn.Module], names: list[str] | None, what: str) -> None:
    torch.manual_seed(0)
    model = cut_by_trace(net(), names, name="net", image_size=(32, 32), raster=None)
    with pytest.raises(SplitError, match=what):
        model.verify()


def test_weights_that_a_network_writes_to_as_it_runs_are_compared() -> None:
    class Follows(Net):
        """Keeps a moving average of its classifier, which nothing here looks at."""

        def __init__(self) -> None:
            super().__init__()
            self.average = nn.Parameter(torch.zeros(5, 8), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                with torch.no_grad():
                    self.average.lerp_(self.fc.weight, 0.1)
            return super().forward(x)

    with pytest.raises(SplitError, match="average in train mode, which the network writes to as it runs, differ"):
        traced(Follows()).verify()


def test_a_network_that_cannot_be_trained_is_told_so() -> None:
    class Overwrites(Net):
        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x).sigmoid()
            return self.fc(x.mul_(2).mean((2, 3)))

    with pytest.raises(SplitError, match=r"net: the backward pass of its head cannot be run: .* inplace operation"):
        traced(Overwrites()).verify()


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        (
            dict(mean=[123.7, 116.3, 103.5]),
            "net: mean is 123.7, and images come in .*; divide what is meant for 0 to 255",
        ),
        (dict(std=[0.2, 0.2, 0]), "net: std is 0, and images come in .*at most 1, and above 0"),
    ],
)
def test_a_normalisation_is_of_images_from_0_to_1(told: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        traced(Net(), **told)


def test_a_buffer_that_changes_beside_the_logits_is_said_so() -> None:
    class Auxiliary(Net):
        """A second head that runs in training; its logits stand beside the others."""

        def __init__(self) -> None:
            super().__init__()
            self.auxiliary = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.auxiliary(self.blocks[0](x))
            return super().forward(x)

    with pytest.raises(SplitError, match=r"buffer .* differ .*; stages run what logits come from, .* auxiliary head"):
        traced(Auxiliary()).verify()
