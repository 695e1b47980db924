"""Networks of one's own, and the layouts that are found in them."""

from __future__ import annotations

import random
import sys
import types
from typing import Any

import pytest
import torch
from drawn import ROWS, Row
from fbt_architectures.layouts import Shape, read_shape
from torch import Tensor, nn

from fbt_plugins import ARCHITECTURES, ConfigError, FBTError, FromMap, StagedModel, ToMap


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
