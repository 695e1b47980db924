"""Torchvision's models, cut and proved."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fbt_architectures import torchvision_models
from torchvision import models

from fbt_plugins import ARCHITECTURES, ConfigError, FBTError, UnknownNameError
from fbt_plugins.models.weightless import on_meta

SMALLEST: dict[str, tuple[int, str]] = {
    "alexnet": (64, "cnn"),
    "convnext_tiny": (32, "cnn"),
    "densenet121": (32, "cnn"),
    "efficientnet_b0": (32, "cnn"),
    "googlenet": (64, "cnn"),
    "inception_v3": (96, "cnn"),
    "maxvit_t": (224, "hybrid"),
    "mnasnet0_5": (32, "cnn"),
    "mobilenet_v2": (32, "cnn"),
    "mobilenet_v3_small": (32, "cnn"),
    "regnet_y_400mf": (32, "cnn"),
    "resnet18": (32, "cnn"),
    "shufflenet_v2_x0_5": (32, "cnn"),
    "squeezenet1_1": (64, "cnn"),
    "swin_t": (64, "attention"),
    "vgg11_bn": (64, "cnn"),
    "vit_b_32": (64, "attention"),
}
DEFAULT = ("resnet18", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "vit_b_32")
"""Maps in rows and channels last, tokens, a classifier that is a convolution; the others run with ``-m slow``."""


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers whose widths torchvision fixes are a sixteenth as wide: most of their time is drawing weights."""

    def change(module: Any, name: str, **widths: Any) -> None:
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda **options: real(**options | widths))

    change(models.vision_transformer, "_vision_transformer", hidden_dim=48, mlp_dim=48, num_heads=3)
    change(models.swin_transformer, "_swin_transformer", embed_dim=24, depths=[2, 1, 1, 1], num_heads=[1, 2, 4, 8])


def build(name: str, **arguments: Any) -> Any:
    return ARCHITECTURES.build(dict(type="torchvision", name=name, num_classes=7, **arguments))


def test_all_families_are_here() -> None:
    families = {models.get_model_builder(n).__module__ for n in torchvision_models.torchvision_names()}
    assert families == {models.get_model_builder(n).__module__ for n in SMALLEST} and len(families) == 17


@pytest.mark.parametrize("name", [n if n in DEFAULT else pytest.param(n, marks=pytest.mark.slow) for n in SMALLEST])
def test_stages_and_head_are_the_model(name: str) -> None:
    size, family = SMALLEST[name]
    model = build(name, **({"image_size": size} if name == "vit_b_32" else {}))
    proof = model.verify(size)
    assert proof.gradients == proof.parameters > 0 and len(model.stages) == 4 and model.num_classes == 7
    assert model.family == family and list(model.mean) == [0.485, 0.456, 0.406]


def test_a_vit_is_cut_two_two_six_two_and_a_resnet_at_its_layers() -> None:
    with on_meta():
        assert build("vit_b_16").stages[0].code.points[1:3] == (
            "encoder.layers.encoder_layer_3",
            "encoder.layers.encoder_layer_9",
        )
        assert [s.grid for s in build("resnet18").specs] == [(56, 56), (28, 28), (14, 14), (7, 7)]
        swin = build("swin_v2_t")
        assert swin.specs[0].layout == "NHWC" and swin.image_size == (256, 256)


@pytest.mark.filterwarnings("error")
def test_networks_are_built_without_auxiliary_heads_and_without_torchvisions_warning() -> None:
    with on_meta():
        model = build("googlenet")
    assert model.net.aux1 is model.net.aux2 is None and model.family == "cnn"


def test_a_vit_takes_images_of_its_own_size_only() -> None:
    model = build("vit_b_32", image_size=64)
    with pytest.raises(FBTError, match=r"cannot take images of 32x32 pixels"):
        model.specs_at((32, 32))


def test_features_are_what_the_classifier_is_given() -> None:
    model = build("mobilenet_v3_small").eval()
    seen: list[torch.Tensor] = []
    model.net.classifier[3].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    known = model.knowledge(torch.rand(2, 3, 64, 64))
    assert torch.equal(known.features, seen[-1]) and known.features.shape == (2, 1024)
    assert build("squeezenet1_1").num_features == 512


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "vit_b_32"])
def test_pretrained_weights_get_a_new_head_of_another_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = models.get_model
    monkeypatch.setattr(models, "get_model", lambda name, weights=None, **kw: real(name, weights=None, **kw))
    model = build(name, pretrained=True, head="new")
    assert model.num_classes == 7 and model.name == name


@pytest.mark.parametrize(
    ("config", "error", "reason"),
    [
        (
            dict(name="resnet81"),
            UnknownNameError,
            "torchvision has no classifier 'resnet81'; did you mean .*'resnet1",
        ),
        (dict(name="resnet18", num_clases=3), ConfigError, "torchvision refuses these arguments .*num_clases"),
        (dict(name="resnet18", checkpoint="nowhere.pth"), FBTError, "'nowhere.pth': no such file"),
        (
            dict(name="resnet18", stages=["layer5"]),
            ConfigError,
            "no module 'layer5' to cut behind; did you mean 'layer",
        ),
    ],
)
def test_what_cannot_be_built_is_one_line(config: dict, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason) as caught:
        ARCHITECTURES.build(dict(type="torchvision", num_classes=10) | config)
    assert "\n" not in str(caught.value)


def test_weights_that_cannot_be_downloaded_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(models, "get_model", offline)
    with pytest.raises(FBTError, match=r"weights could not be downloaded.*no route to host.*checkpoint="):
        build("resnet18", pretrained=True, head="new")


def test_torchvision_without_its_last_layer() -> None:
    config = dict(type="torchvision", name="squeezenet1_1")
    with on_meta():
        encoder, classifier = (ARCHITECTURES.build(config | dict(num_classes=n)) for n in (0, 7))
        assert encoder.specs == classifier.specs and encoder.num_features == classifier.num_features == 512
    assert encoder.num_classes == 0
