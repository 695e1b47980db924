"""What a trace cannot follow is refused in one line, which says whose fault it is and what to do."""

from __future__ import annotations

import random
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fbt_architectures.traced_cut import by_name
from networks import Net, Tokens, cut
from torch import Tensor, nn

from fbt_plugins import ConfigError


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


class Columns(Net):
    """Two columns that meet in front of the classifier, with gains of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.gains = nn.ParameterList(nn.Parameter(torch.ones(1)) for _ in range(2))
        self.other, self.fc = nn.ModuleList([nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)]), nn.Linear(72, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.other[1](self.other[0](x))
        return self.fc(torch.cat([self.features(x * self.gains[0]).mean((2, 3)), y.mean((2, 3)) * self.gains[1]], 1))


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
    with pytest.raises(
        ConfigError, match=r"draws random numbers .*(networks|traced\w*)\.py:\d+\); let a layer draw them"
    ):
        cut(net)


def test_forward_hooks_that_would_not_run_are_refused() -> None:
    net = Net()
    net.register_forward_hook(lambda module, args, output: output * 2)
    with pytest.raises(ConfigError, match="Net has forward hooks"):
        cut(net)


def test_weights_used_in_two_stages_are_refused() -> None:
    with pytest.raises(ConfigError, match="net: same is used in stage 1 and in the head"):
        cut(Shared(), ["middle"])


def test_where_two_tensors_cross_all_along_nobody_is_told_to_name_a_row() -> None:
    with pytest.raises(ConfigError, match=r"behind no module; .*\d+\); let the network hand on one tensor"):
        cut(Columns())
    assert by_name(nn.Sequential(Columns())).startswith("write a StagedModel of its parts")
    assert "gains" not in by_name(Columns()) and "'stem', 'blocks'" in by_name(Columns())


def test_a_forward_that_somebody_gave_a_network_of_torch_has_a_line() -> None:
    def forward(net: nn.Sequential, x: Tensor) -> Tensor:
        return net[0](x)[:, :, 0, 0, None]

    net = nn.Sequential(nn.Conv2d(3, 5, 3))
    net.forward = MethodType(forward, net)  # type: ignore[method-assign]
    with pytest.raises(
        ConfigError, match=r"gives a tensor of 5x1 per image, not logits .*test_traced_refusals\.py:\d+"
    ):
        cut(net)


def test_a_part_that_torch_jit_compiled_is_one_line() -> None:
    net = Net()
    net.blocks[1] = torch.jit.trace(net.blocks[1].eval(), torch.rand(1, 16, 8, 8))
    with pytest.raises(ConfigError, match=r"net: blocks\.1 was compiled by torch\.jit.*build the network without"):
        cut(net)


class PatchDrop(Tokens):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[..., :16] if self.training else x)


class Unfit(Net):
    def features(self, x: Tensor) -> Tensor:
        return super().features(F.layer_norm(x, (7,)))


class Item(Net):
    def features(self, x: Tensor) -> Tensor:
        return super().features(x) * (x > 0).all().item()


class Where(Net):
    def features(self, x: Tensor) -> Tensor:
        return super().features(x) + x[x > 0].mean()


class Named(Net):
    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"answer": super().forward(x)}


class Unique(Net):
    def features(self, x: Tensor) -> Tensor:
        return super().features(x) * len(x.unique())


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (PatchDrop(), r"per image 8x8 in training and 16x8 in eval mode \(.*networks\.py:\d+\); where it drops"),
        (Unfit(), r"takes no images of 32x32 pixels, and raises RuntimeError: .*traced\w*\.py:\d+\); mend it, or set"),
        (Named(), r"its forward gives an object with 'answer', not logits"),
        (Item(), r"depends on values of a tensor \(Tensor.item\) \(.*test_traced"),
        (Where(), r"depends on values of a tensor \([\w.:]+\) \(.*test_traced\w*\.py:\d+\)"),
        (Unique(), r"depends on values of a tensor \(aten::\w+\) \(.*traced\w*\.py:\d+\)"),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), r"has no classifier; give it one, or .*num_classes=0"),
    ],
    ids=["dropped tokens", "the network itself", "an object", "an item", "where", "values", "no classifier"],
)
def test_a_refusal_says_whose_fault_it_is_and_what_to_do(net: nn.Module, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        cut(net)


def test_a_refusal_names_the_networks_own_line_and_what_to_try() -> None:
    with pytest.raises(ConfigError, match=r"values of a tensor \(.*traced\w*\.py:\d+\); .* stages=\[.*head='... fc'"):
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
        match=r"is used in stage 1 and in stage 2.* \(.*traced\w*\.py:\d+\); cut there: stages=3, or name",
    ):
        cut(Sharing((0,) * 8))
    with pytest.raises(ConfigError, match=r"used in stage \d and in .*traced\w*\.py:\d+\); cut where all that use it"):
        cut(Sharing((0, 0, 0, 0)), ["blocks.0", "blocks.1"])
