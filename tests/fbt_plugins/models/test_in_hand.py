"""StagedModel.of: networks that are built already, cut as their architecture's plugin would."""

import copy
from typing import Any

import pytest
import timm
import torch
import torchvision
from conftest import CNN, VIT
from torch import Tensor, nn

from fbt_plugins import ARCHITECTURES, ConfigError, Knowledge, PluginError, StagedModel
from fbt_plugins.authoring import InHand


class Own(nn.Module):
    """Somebody's network of three blocks."""

    def __init__(self, logits: bool = True) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Conv2d(3 if i == 0 else 8, 8, 3, 2, 1) for i in range(3)))
        self.fc = nn.Linear(8, 5)
        self.logits = logits

    def forward(self, x: Tensor) -> Any:
        features = self.blocks(x).relu().mean((2, 3))
        return self.fc(features) if self.logits else (self.fc(features), features)


def untouched(network: nn.Module) -> dict[str, Any]:
    state = {key: (id(value), value.clone()) for key, value in network.state_dict(keep_vars=True).items()}
    return {"state": state, "training": network.training, "hooks": copy.copy(network._forward_hooks)}


@pytest.mark.parametrize("config", [CNN, VIT], ids=["cnn", "vit"])
def test_timms_are_cut_as_those_of_a_config(config: dict[str, Any]) -> None:
    arguments = {key: value for key, value in config.items() if key not in ("type", "name")}
    network = timm.create_model(config["name"], **arguments)
    before = untouched(network)
    model, expected = StagedModel.of(network), ARCHITECTURES.build(config)
    for what in ("name", "way", "mean", "std", "image_size", "input_size", "specs", "family", "num_classes", "feature"):
        assert getattr(model, what) == getattr(expected, what), what
    assert model.net is network and model.arguments == {}
    after = untouched(network)
    assert before["training"] == after["training"] and before["hooks"] == after["hooks"]
    assert all(before["state"][key][0] == after["state"][key][0] for key in before["state"])
    assert all(torch.equal(before["state"][key][1], after["state"][key][1]) for key in before["state"])
    model.verify(32)


def test_images_have_the_size_that_is_said_where_the_network_has_none() -> None:
    cnn = timm.create_model("resnet18", channels=(8, 8, 8, 8), num_classes=3)
    assert StagedModel.of(cnn).image_size == (224, 224) and StagedModel.of(cnn, image_size=64).image_size == (64, 64)
    vit = timm.create_model(VIT["name"], img_size=32, patch_size=8, embed_dim=24, depth=4, num_heads=3)
    assert StagedModel.of(vit, image_size=64).image_size == (32, 32)


def test_timm_says_how_many_channels_images_have() -> None:
    grey = timm.create_model("resnet18", channels=(8, 8, 8, 8), num_classes=3, in_chans=1)
    assert (
        StagedModel.of(grey, mean=0.5, std=0.5).specs_at((32, 32)) and StagedModel.of(grey, mean=0, std=1).in_chans == 1
    )


def test_torchvisions() -> None:
    model = StagedModel.of(torchvision.models.resnet18(num_classes=4), image_size=32, stages=["layer1", "layer4"])
    assert (len(model.stages), model.num_classes, model.image_size, model.way) == (2, 4, (32, 32), "traced")
    assert model.mean == (0.485, 0.456, 0.406)
    with pytest.raises(ConfigError, match=r"GoogLeNet: its auxiliary heads .*; build it with aux_logits=False"):
        StagedModel.of(torchvision.models.googlenet(init_weights=False))


def test_ones_own_is_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    proved = []
    monkeypatch.setattr(StagedModel, "verify", lambda self, *_: proved.append(self.name))
    model = StagedModel.of(Own(), image_size=32, stages=3)
    assert (model.name, model.num_classes, model.mean, model.std) == ("Own", 5, (0.0,) * 3, (1.0,) * 3)
    assert proved == ["Own"]
    StagedModel.of(Own(), image_size=32, stages=3, verify=False)
    assert proved == ["Own"]


@pytest.mark.parametrize(
    ("network", "options", "line"),
    [
        (Own(), dict(stage=3), r"Own \(module\): no argument 'stage'; did you mean 'stages'"),
        (Own(), dict(stages=3, image_size=32, family="conv"), "family 'conv'"),
        (Own(logits=False), dict(stages=3, image_size=32), "Own: its forward gives a tuple, not logits"),
        (Own(), dict(stages=3, image_size=(1, 2, 3)), "an image size is a number of pixels or"),
    ],
)
def test_what_cannot_be_is_a_line(network: nn.Module, options: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        StagedModel.of(network, **options)


class Theirs(Own):
    """A network of a third party's library."""


class TheirHead(nn.Module):
    def __init__(self, network: Own) -> None:
        super().__init__()
        self.fc = network.fc

    def forward(self, x: Tensor) -> Knowledge:
        features = x.relu().mean((2, 3))
        return Knowledge(features, self.fc(features))


def test_a_plugins_architecture_is_asked_before_those_that_take_any(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(net: Any, image_size: Any = None, prefix: str = "their") -> StagedModel:
        if prefix == "broken":
            raise KeyError("oops")
        return StagedModel(net, net.blocks, TheirHead(net), image_size=image_size or 32, name=f"{prefix} net")

    def build() -> None: ...

    build.in_hand = InHand(cut, lambda net: isinstance(net, Theirs))  # type: ignore[attr-defined]
    monkeypatch.setitem(ARCHITECTURES.module_dict, "theirs", build)
    model = StagedModel.of(Theirs(), prefix="her")
    model.verify()
    assert model.name == "her net" and StagedModel.of(Own(), stages=3, image_size=32, verify=False).name == "Own"
    with pytest.raises(PluginError, match="'theirs' raised KeyError"):
        StagedModel.of(Theirs(), prefix="broken")
