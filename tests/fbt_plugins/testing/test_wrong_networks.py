"""What an honest author of an architecture gets wrong, each caught in words that name it; and what passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from caught import says
from torch import Tensor, nn

from fbt_plugins import ARCHITECTURES, Declaration, StagedModel
from fbt_plugins.testing.checks import check_architecture


class Net(nn.Module):
    def __init__(self, does: Callable[[Tensor], Tensor] = lambda x: x, rates: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 2, 2), nn.Sequential(nn.Conv2d(4, 8, 2, 2), nn.BatchNorm2d(8), Does(does))
        self.pool, self.fc = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(8, 5)
        self.rates = [rate.item() for rate in torch.linspace(0, 0.1, 4)] if rates else []

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.b(self.a(x))))


def listed(x: Tensor) -> Tensor:
    """Stands for a convolution that its module keeps in a list."""
    raise NotImplementedError


class Does(nn.Module):
    def __init__(self, does: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.does, self.layers = does, [nn.Conv2d(8, 8, 1)]

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[0](x) if self.does is listed else self.does(x)


def cut(net: nn.Module) -> StagedModel:
    return Declaration(stem="", units="a b", cuts="a b", head="pool fc").cut(net, image_size=(8, 8), name="net")


def build_rates(num_classes: int = 5) -> StagedModel:
    return cut(Net(rates=True))


@pytest.mark.parametrize(
    ("does", "reason"),
    [
        (
            lambda x: x - x.mean(0, keepdim=True),
            "net mixes the images of a batch: in eval mode its logits for an image",
        ),
        (lambda x: x * torch.ones(8, 1, 1), "Tensor on device cpu is not on the expected device meta"),
        (listed, "net: it computes with a trained tensor (8"),
    ],
    ids=["mixed", "made on the CPU", "layers in a list"],
)
def test_a_wrong_network_is_caught(does: Any, reason: str) -> None:
    says(reason, check_architecture, cut(Net(does)))


class Keeps(nn.Module):
    """A layer that leaves something in an attribute for one behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.kept = nn.Conv2d(3, 4, 2, 2), torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        self.kept = x.mean()
        return x


class Reads(nn.Module):
    def __init__(self, keeps: Keeps) -> None:
        super().__init__()
        self.conv, self.keeps = nn.Conv2d(4, 8, 2, 2), [keeps]

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.keeps[0].kept


def test_a_stage_that_looks_at_what_another_has_left_is_caught() -> None:
    net = Net()
    net.a = Keeps()  # type: ignore[assignment]
    net.b = Reads(net.a)  # type: ignore[assignment,arg-type]
    says("stage 2 gives something else for the same input once other images", check_architecture, cut(net))


def test_a_network_that_looks_at_values_when_it_is_built_is_caught() -> None:
    ARCHITECTURES.register_module(name="rates_net", module=build_rates)
    try:
        says("rates_net: built without weights, on torch's meta device", check_architecture, dict(type="rates_net"))
    finally:
        del ARCHITECTURES.module_dict["rates_net"]


def test_a_right_network_passes() -> None:
    check_architecture(cut(Net()))


class Turned(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).transpose(2, 3)


@pytest.mark.parametrize("seed", range(4))
def test_a_network_whose_maps_swap_rows_and_columns_is_caught(seed: int) -> None:
    torch.manual_seed(9 * seed)  # of single images, the small maps of 0 and 9 would not be
    net = Net()
    net.a = Turned(net.a)  # type: ignore[assignment]
    says("stage 1 is said to give NCHW 4 x 4x4, but its rows and columns are swapped", check_architecture, cut(net))
