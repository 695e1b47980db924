"""Families of timm and torchvision that no declaration covers are cut exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import EDGES, TASK

from fbt_plugins import ARCHITECTURES
from fbt_plugins.distill.distiller import Distiller

# Small models of families that no declaration covers; the slow test has all of them.
SMALL: dict[str, tuple[dict[str, Any], str]] = {
    "test_byobnet": ({}, "cnn"),
    "test_nfnet": ({}, "cnn"),
    "test_mambaout": ({}, "cnn"),
    "test_coatnet": ({}, "hybrid"),
    "test_vit_relpos": ({}, "attention"),
    "beit_base_patch16_224": (dict(img_size=32, depth=5, embed_dim=24, num_heads=2), "attention"),
    "eva02_tiny_patch14_224": (dict(img_size=28, depth=4, embed_dim=24, num_heads=2), "attention"),
    "cait_xxs24_224": (dict(img_size=32, depth=4, embed_dim=24, num_heads=2), "attention"),
    "xcit_nano_12_p16_224": (dict(img_size=64, depth=4), "attention"),
    "convit_tiny": (dict(img_size=32, depth=4), "attention"),
    "deepseek_vit_412m": (dict(img_size=56, depth=4, embed_dim=64, num_heads=2), "attention"),
    "qwen3_vit_88m": (dict(img_size=64, depth=4, embed_dim=64, num_heads=2), "attention"),
    "swinv2_cr_tiny_ns_224": (
        dict(img_size=64, window_size=2, depths=(1, 1, 1, 1), embed_dim=32, num_heads=(1, 2, 4, 8)),
        "attention",
    ),
    "pvt_v2_b0": ({}, "attention"),
    "twins_svt_small": (dict(img_size=64, depths=(1, 1, 1, 1), embed_dims=(16, 16, 16, 16)), "attention"),
    "levit_128s": (dict(img_size=64, embed_dim=(16, 24, 32), num_heads=(1, 2, 2), depth=(1, 1, 1)), "hybrid"),
    "visformer_tiny": (dict(img_size=64), "hybrid"),
    "edgenext_xx_small": ({}, "hybrid"),
    "regnetx_002": ({}, "cnn"),
    "densenet121": (dict(block_config=(1, 1, 1, 1), growth_rate=8), "cnn"),
    "dla46x_c": ({}, "cnn"),
    "mobilenetv3_small_050": ({}, "cnn"),
    "mobilevit_xxs": ({}, "hybrid"),
}
DEFAULT = (
    *("test_byobnet", "test_coatnet", "densenet121"),  # at the last four resolutions, maps in rows
    *("test_mambaout", "twins_svt_small"),  # the same: channels last, tokens
    *("test_vit_relpos", "beit_base_patch16_224", "cait_xxs24_224"),  # after 2 : 2 : n - 6 : 2 blocks
    "levit_128s",  # three resolutions, and the stem; two heads
)
"""One or a few for each way in which timm's ``feature_info`` tells where to cut; the others run with ``-m slow``."""
SIZES = {"test_coatnet": 160, "test_vit_relpos": 160}


@pytest.mark.parametrize("name", [n if n in DEFAULT else pytest.param(n, marks=pytest.mark.slow) for n in SMALL])
def test_families_of_timm_are_cut_exactly(name: str) -> None:
    arguments, family = SMALL[name]
    model = ARCHITECTURES.build(dict(type="timm", name=name, num_classes=7, **arguments))
    size = arguments.get("img_size", SIZES.get(name, 64))
    proof = model.verify(size)
    assert proof.gradients > 0 and len(model.stages) == 4 and model.way == "traced"
    assert model.family == family


IN_PLACE = {
    "alexnet": ("torchvision", 96),
    "vgg11_bn": ("torchvision", 64),
    "densenet121": ("torchvision", 64),
    "shufflenet_v2_x0_5": ("torchvision", 64),
    "mnasnet0_5": ("torchvision", 64),
    "squeezenet1_1": ("torchvision", 64),
    "hrnet_w18_small": ("timm", 64),
    "selecsls42": ("timm", 64),
}
"""Real networks whose in-place layers write to what is kept of a stage."""


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_PLACE)
def test_networks_with_layers_in_place_are_cut_exactly_and_fuse_alike_whoever_is_asked(name: str) -> None:
    type_, size = IN_PLACE[name]
    network = dict(type=type_, name=name, num_classes=10)
    assert ARCHITECTURES.build(network).verify(size).stages == 4
    teacher = dict(type="timm", name="test_resnet", num_classes=10)
    given = dict(edges=EDGES, feature_loss=dict(type="InfoNCELoss"), logit_loss=dict(type="OFALoss"), task_loss=TASK)
    torch.manual_seed(0)
    fusion = dict(type="L2GFusion", splice="S1-3+T4")
    model = Distiller(network, teacher, fusion=fusion, image_size=(size, size), **given).eval()  # type: ignore[arg-type]
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        alone, beside = (model.predict(images, names)["fusion"] for names in (["fusion"], ["student", "fusion"]))
    assert torch.equal(alone, beside)
