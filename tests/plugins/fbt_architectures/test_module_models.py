"""Networks of one's own, the layouts that are found in them, and torchvision's models."""

from __future__ import annotations

import random
import sys
import types
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from drawn import ROWS, Row
from fbt_architectures import torchvision_models
from fbt_architectures.layouts import Shape, read_shape
from torch import Tensor, nn
from torchvision import models

from fbt_plugins import ARCHITECTURES, ConfigError, FBTError, FromMap, StagedModel, ToMap, UnknownNameError
from fbt_plugins.models.weightless import on_meta


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


# ---- layouts --------------------------------------------------------------------------------------------------------


SMALL = [row for row in ROWS if row.ordered and (row.step or row.family in ("hieradet", "levit", "mambaout"))]
DEFAULT = ("beit", "cait", "coatnet", "deit, distilled", "hiera", "levit", "mambaout", "swin", "twins", "vit", "xcit")
"""Tokens with and without prefix tokens, in rows and in an order of their own, at one resolution and at four; channels
last; the others run with ``-m slow``."""
WHOLE = """
    beit_base_patch16_224 beitv2_base_patch16_224 cait_xxs24_224 convit_tiny deit3_small_patch16_224
    deit_tiny_distilled_patch16_224 deit_tiny_patch16_224 efficientformer_l1 eva02_tiny_patch14_224 gmlp_ti16_224
    hiera_small_abswin_256 hiera_tiny_224 hieradet_small levit_128s levit_256d mambaout_femto mixer_s16_224
    mvitv2_tiny naflexvit_base_patch16_gap naflexvit_base_patch16_parfac_gap resmlp_12_224 sam2_hiera_tiny
    samvit_base_patch16_224 sequencer2d_s swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 test_vit test_vit2
    test_vit3 test_vit4 test_vit_relpos twins_pcpvt_small twins_svt_small vit_base_patch32_clip_224
    vit_little_patch16_reg4_gap_256 vit_relpos_small_patch16_224 vit_small_patch14_reg4_dinov2
    vit_tiny_patch16_dinov3_qkvb vit_tiny_r_s16_p8_224 vit_wee_patch16_reg1_gap_256
    vitamin_small_224 volo_d1_224 xcit_nano_12_p8_224 xcit_tiny_12_p16_224
""".split()  # noqa: SIM905
"""Models of timm, at their own size, that have tokens or channels last."""


def unmatched(model: StagedModel, size: tuple[int, int]) -> tuple[list[str], int]:
    """Stages with tokens or channels last that are none of timm's intermediates, and how many of all stages are one."""
    torch.manual_seed(0)
    model.eval()
    with torch.no_grad():
        for parameter in model.net.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        images = torch.randn(2, 3, *size)
        outputs = model.stage_outputs(images, range(1, len(model.stages) + 1))
        own = model.net.forward_intermediates(images, output_fmt="NCHW", norm=False, intermediates_only=True)
    wrong, matched = [], 0
    for number, spec in enumerate(model.specs_at(size), 1):
        found = ToMap(spec)(outputs[number])
        if any(found.shape == x.shape and torch.allclose(found, x, rtol=1e-4, atol=1e-5) for x in own):
            matched += 1
        elif spec.layout != "NCHW":
            wrong.append(f"stage {number}: {spec}")
    return wrong, matched


@pytest.mark.parametrize(
    "row",
    [pytest.param(r, marks=() if r.family in DEFAULT else pytest.mark.slow) for r in SMALL],
    ids=lambda row: row.family,
)
def test_stages_of_small_models_are_timms_own_maps(row: Row) -> None:
    size = (64, 64) if row.square or row.fixed else (64, 96)
    model = ARCHITECTURES.build(row.config(size, 5))
    wrong, matched = unmatched(model, model.input_size or size)
    assert not wrong and matched >= len(model.stages) - 1  # the stem may be a stage, or a last convolution part of one


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_stages_of_whole_models_are_timms_own_maps(name: str) -> None:
    model = ARCHITECTURES.build(dict(type="timm", name=name, num_classes=5))
    wrong, matched = unmatched(model, model.image_size)
    assert not wrong and matched >= len(model.stages) - 1


def test_tokens_that_stand_elsewhere_come_back_to_their_places() -> None:
    arguments = dict(name="hiera_tiny_224", img_size=(32, 64), embed_dim=16, num_heads=1)
    model = ARCHITECTURES.build(dict(type="timm", num_classes=5, **arguments)).eval()
    outputs = model.stage_outputs(torch.randn(2, 3, 32, 64), {1, 2, 3, 4})
    for number, spec in enumerate(model.specs, 1):
        assert str(spec).endswith("not row by row") and spec.order is not None
        as_map = ToMap(spec)(outputs[number])
        assert torch.equal(FromMap(spec)(as_map.permute(0, 2, 3, 1)), outputs[number])
    assert not torch.equal(model.specs[0].order, torch.arange(8 * 16))


@pytest.mark.parametrize(
    ("tokens", "image", "known", "expected"),
    [
        (9, 32, 5, Shape("NLC", 8, (2, 2), 5)),  # not 3x3, which no stride gives
        (4, 32, 5, Shape("NLC", 8, (2, 2), 0)),  # they may come later
        (197, 224, 0, Shape("NLC", 8, (14, 14), 1)),
        (16, 52, 0, Shape("NLC", 8, (4, 4), 0)),  # stride 16, rounded up
    ],
)
def test_prefix_tokens_are_told_from_the_grid(tokens: int, image: int, known: int, expected: Shape) -> None:
    net = nn.Identity()
    net.num_prefix_tokens = known  # type: ignore[assignment]
    assert read_shape((tokens, 8), (3, image, image), net, "block") == expected


# ---- torchvision models ---------------------------------------------------------------------------------------------


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
TORCHVISION_MODELS_DEFAULT = ("resnet18", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "vit_b_32")
"""Maps in rows and channels last, tokens, a classifier that is a convolution; the others run with ``-m slow``."""


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers whose widths torchvision fixes are a sixteenth as wide: most of their time is drawing weights."""

    def change(module: Any, name: str, **widths: Any) -> None:
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda **options: real(**options | widths))

    change(models.vision_transformer, "_vision_transformer", hidden_dim=48, mlp_dim=48, num_heads=3)
    change(models.swin_transformer, "_swin_transformer", embed_dim=24, depths=[2, 1, 1, 1], num_heads=[1, 2, 4, 8])


def torchvision_models_build(name: str, **arguments: Any) -> Any:
    return ARCHITECTURES.build(dict(type="torchvision", name=name, num_classes=7, **arguments))


def test_all_families_are_here() -> None:
    families = {models.get_model_builder(n).__module__ for n in torchvision_models.torchvision_names()}
    assert families == {models.get_model_builder(n).__module__ for n in SMALLEST} and len(families) == 17


@pytest.mark.parametrize(
    "name", [n if n in TORCHVISION_MODELS_DEFAULT else pytest.param(n, marks=pytest.mark.slow) for n in SMALLEST]
)
def test_stages_and_head_are_the_model(name: str) -> None:
    size, family = SMALLEST[name]
    model = torchvision_models_build(name, **({"image_size": size} if name == "vit_b_32" else {}))
    proof = model.verify(size)
    assert proof.gradients == proof.parameters > 0 and len(model.stages) == 4 and model.num_classes == 7
    assert model.family == family and list(model.mean) == [0.485, 0.456, 0.406]


def test_a_vit_is_cut_two_two_six_two_and_a_resnet_at_its_layers() -> None:
    with on_meta():
        assert torchvision_models_build("vit_b_16").stages[0].code.points[1:3] == (
            "encoder.layers.encoder_layer_3",
            "encoder.layers.encoder_layer_9",
        )
        assert [s.grid for s in torchvision_models_build("resnet18").specs] == [(56, 56), (28, 28), (14, 14), (7, 7)]
        swin = torchvision_models_build("swin_v2_t")
        assert swin.specs[0].layout == "NHWC" and swin.image_size == (256, 256)


@pytest.mark.filterwarnings("error")
def test_networks_are_built_without_auxiliary_heads_and_without_torchvisions_warning() -> None:
    with on_meta():
        model = torchvision_models_build("googlenet")
    assert model.net.aux1 is model.net.aux2 is None and model.family == "cnn"


def test_a_vit_takes_images_of_its_own_size_only() -> None:
    model = torchvision_models_build("vit_b_32", image_size=64)
    with pytest.raises(FBTError, match=r"cannot take images of 32x32 pixels"):
        model.specs_at((32, 32))


def test_features_are_what_the_classifier_is_given() -> None:
    model = torchvision_models_build("mobilenet_v3_small").eval()
    seen: list[torch.Tensor] = []
    model.net.classifier[3].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    known = model.knowledge(torch.rand(2, 3, 64, 64))
    assert torch.equal(known.features, seen[-1]) and known.features.shape == (2, 1024)
    assert torchvision_models_build("squeezenet1_1").num_features == 512


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "vit_b_32"])
def test_pretrained_weights_get_a_new_head_of_another_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = models.get_model
    monkeypatch.setattr(models, "get_model", lambda name, weights=None, **kw: real(name, weights=None, **kw))
    model = torchvision_models_build(name, pretrained=True, head="new")
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
def test_torchvision_models_what_cannot_be_built_is_one_line(config: dict, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason) as caught:
        ARCHITECTURES.build(dict(type="torchvision", num_classes=10) | config)
    assert "\n" not in str(caught.value)


def test_weights_that_cannot_be_downloaded_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(models, "get_model", offline)
    with pytest.raises(FBTError, match=r"weights could not be downloaded.*no route to host.*checkpoint="):
        torchvision_models_build("resnet18", pretrained=True, head="new")


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


def test_torchvision_without_its_last_layer() -> None:
    config = dict(type="torchvision", name="squeezenet1_1")
    with on_meta():
        encoder, classifier = (ARCHITECTURES.build(config | dict(num_classes=n)) for n in (0, 7))
        assert encoder.specs == classifier.specs and encoder.num_features == classifier.num_features == 512
    assert encoder.num_classes == 0
