"""Networks of one's own, by the path of their factory."""

from __future__ import annotations

import random
import sys
import types
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fbt_plugins import ARCHITECTURES, ConfigError, FBTError


class Net(nn.Module):
    def __init__(self, num_classes: int, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        self.layers = nn.Sequential(*(nn.Conv2d(width, width, 3, 2, 1) for _ in range(3)))
        self.fc = nn.Linear(width, num_classes)

    def pool(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.layers(self.stem(x)).relu()))


class Moody(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.mood())

    def mood(self) -> float:
        return 1.0


class Untraceable(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(self.stem(x))
        return self.fc(self.pool(x if x.sum() > -1e9 else -x))


@pytest.fixture(autouse=True)
def own_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("my_networks")
    vars(module).update(net=Net, moody=Moody, untraceable=Untraceable, number=lambda: 3, VERSION=1)
    monkeypatch.setitem(sys.modules, "my_networks", module)


def build(path: str = "my_networks:net", **arguments: Any) -> Any:
    return ARCHITECTURES.build(dict(type="module", path=path, num_classes=4, image_size=32, **arguments))


def test_a_network_of_ones_own_is_traced_and_works_as_any_other() -> None:
    model = build(width=16, mean=[0.5] * 3)
    assert [str(s) for s in model.specs] == [
        "NCHW 16 x 16x16", "NCHW 16 x 8x8", "NCHW 16 x 4x4", "NCHW 16 x 2x2",
    ]  # fmt: skip
    assert (model.way, model.num_classes, model.mean, model.std) == ("traced", 4, (0.5,) * 3, (1.0,) * 3)
    assert [s.grid for s in build(stages=["layers.0", "layers.2"]).specs] == [(8, 8), (2, 2)]


def test_stages_and_head_can_be_declared_in_full() -> None:
    rows = ["stem", "layers.0", "layers.1", "layers.2"]
    model = build("my_networks:untraceable", stages=rows, head="pool fc")
    assert model.way == "declared" and len(model.stages) == 4
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(model(images), model.net(images))
    with pytest.raises(FBTError, match="differ by up to"):  # it leaves out the relu
        build(stages=rows, head="pool fc")
    with pytest.raises(ConfigError, match=r"no module or method 'layer\.2'; did you mean 'layers"):
        build(stages=[*rows[:3], "layer.2"], head="pool fc")
    with pytest.raises(ConfigError, match="head= comes with stages="):
        build(head="pool fc")


def test_a_cut_is_proved_when_it_is_built_unless_told_not_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Moody, "mood", lambda self: random.SystemRandom().random())  # no generator that a trace sees
    with pytest.raises(FBTError, match="logits in eval mode differ"):
        build("my_networks:moody")
    assert build("my_networks:moody", verify=False).num_classes == 4


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (dict(path="my_networks"), "write package.module:factory"),
        (dict(path="my_network:net"), "'my_network' cannot be imported"),
        (dict(path="my_networks:nett"), "no function 'nett'; did you mean 'net'"),
        (dict(path="my_networks:VERSION"), "no function 'VERSION'"),
        (dict(path="my_networks:number", num_classes=None), "returns a int, not an nn.Module"),
        (dict(path="my_networks:net", widht=3), "no argument 'widht'; did you mean 'width'"),
        (dict(path="my_networks:untraceable"), "depends on the batch size or on values of a tensor"),
    ],
)
def test_what_cannot_be_built_is_one_line(config: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        ARCHITECTURES.build(dict(type="module", num_classes=4) | config)
    assert "\n" not in str(caught.value)


@dataclass
class Answer:
    logits: Tensor
    loss: None = None


class Wrapped(Net):
    def forward(self, x: Tensor) -> Any:
        return Answer(super().forward(x))


def failing(num_classes: int) -> nn.Module:
    raise RuntimeError("no such file")


class Patches(nn.Module):
    def __init__(self, num_classes: int, image_size: int = 0) -> None:
        super().__init__()
        self.patch, self.side = nn.Conv2d(3, 8, 8, 8), image_size
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).permute(0, 2, 1)
        for block in self.blocks:
            x = block(x)
        return self.fc(x[:, 0])


def test_a_network_that_answers_with_an_object_gives_its_logits() -> None:
    vars(sys.modules["my_networks"])["wrapped"] = Wrapped
    model = build("my_networks:wrapped")
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(model(images), model.net(images)) and model.way == "traced"
    assert model.net.state_dict().keys() == Wrapped(4).state_dict().keys()


def test_steps_without_a_module_and_arguments_that_are_called_like_ours() -> None:
    vars(sys.modules["my_networks"])["patches"] = Patches
    rows = ["patch flatten 2 permute 0 2 1 blocks.0", "blocks.1", "blocks.2"]
    more = dict(stages=rows, layout="NLC", arguments=dict(image_size=7))
    model = build("my_networks:patches", head="token 0 fc", **more)
    assert model.net.side == 7 and [str(s) for s in model.specs] == ["NLC 8 x 4x4"] * 3
    with pytest.raises(FBTError, match="differ by up to"):
        build("my_networks:patches", head="mean fc", **more)
    with pytest.raises(ConfigError, match="'width' is given twice"):
        build(width=8, arguments=dict(width=16))


def test_who_wrote_the_factory_is_told_what_it_raises_and_where() -> None:
    vars(sys.modules["my_networks"])["failing"] = failing
    with pytest.raises(
        ConfigError,
        match=r"my_networks:failing: its factory fails, RuntimeError at .*test_module_models\.py:\d+: no such",
    ):
        build("my_networks:failing")


class Encoder(Net):
    """Answers in one of the ways in which networks without a classifier do."""

    def __init__(self, answer: str = "map") -> None:
        super().__init__(3)
        self.answer = answer
        self.fc = nn.Identity()  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Any:
        x = self.layers(self.stem(x)).relu()
        if self.answer == "tokens":
            return x.flatten(2).transpose(1, 2)
        if self.answer == "object":
            return types.SimpleNamespace(last_hidden_state=x.flatten(2).transpose(1, 2), pooler_output=None)
        return self.pool(x) if self.answer == "features" else x


@pytest.mark.parametrize("answer", ["features", "map", "tokens", "object"])
def test_an_encoder_of_ones_own_gives_features(answer: str) -> None:
    """Whatever it answers with, its features are one row for each image, and the cut is proved."""
    path = f"{__name__}:Encoder"
    model = ARCHITECTURES.build(dict(type="module", path=path, num_classes=0, image_size=32, answer=answer)).eval()
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        known = model.knowledge(x)
        torch.testing.assert_close(known.features, model.net.pool(model.net.layers(model.net.stem(x)).relu()))
    assert known.logits is None and (model.num_classes, model.num_features) == (0, 8) and len(model.stages) == 4


class PlainEncoder(Encoder):
    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.stem(x))


def test_an_encoder_of_named_steps_has_no_classifier() -> None:
    names = dict(stages=["stem", "layers.0", "layers.1", "layers.2"], head="mean")
    config = dict(type="module", path=f"{__name__}:PlainEncoder", num_classes=0, image_size=32, **names)
    assert ARCHITECTURES.build(config).knowledge(torch.rand(2, 3, 32, 32)).features.shape == (2, 8)
