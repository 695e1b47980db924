"""A model's family is read off what its stages compute, and is right for names that everybody knows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fbt_plugins import ARCHITECTURES
from fbt_plugins.models.census import of_model, of_stages, take_census

KNOWN = {
    "cnn": (
        "resnet50 seresnet50 convnext_tiny efficientnet_b0 mobilenetv2_100 regnety_002 poolformer_s12 "
        "resnext50_32x4d ecaresnet26t gcresnet50t skresnet18 resnest14d convnextv2_atto mobilenetv3_small_100 "
        "mobilenetv4_conv_small densenet121 vgg11 inception_v3 xception41 convmixer_768_32 resnet50_clip "
        "convformer_s18 focalnet_tiny_srf repvgg_a0 ghostnet_100 mambaout_tiny "
    ),
    "attention": (
        "vit_small_patch16_224 swin_tiny_patch4_window7_224 pvt_v2_b0 xcit_nano_12_p16_224 nest_tiny "
        "deit_tiny_patch16_224 deit3_small_patch16_224 beit_base_patch16_224 cait_xxs24_224 "
        "swinv2_tiny_window8_256 pvt_v2_b2 twins_svt_small volo_d1_224 convit_tiny davit_tiny mvitv2_tiny "
        "eva02_tiny_patch14_224 hiera_tiny_224 swin_pico_patch4_window7_224 "
    ),
    "mlp": ("mixer_b16_224 resmlp_12_224 gmlp_s16_224 resmlp_s4_patch4_32 gmixer_12_224 "),
    "hybrid": (
        "coatnet_0_rw_224 mobilevit_s levit_128s vit_tiny_r_s16_p8_224 maxvit_tiny_tf_224 mobilevitv2_100 "
        "efficientformer_l1 edgenext_small botnet26t_256 halonet26t lambda_resnet26t visformer_tiny "
        "tiny_vit_5m_224 caformer_s18 mobilenetv4_hybrid_medium fastvit_sa12 swiftformer_xs "
    ),
}
DEFAULT = {
    *("coatnet_0_rw_224", "levit_128s", "mobilevit_s", "vit_tiny_r_s16_p8_224", "nest_tiny", "pvt_v2_b0"),
    *("xcit_nano_12_p16_224", "poolformer_s12", "regnety_002", "seresnet50"),
}
"""Plain CNNs, transformers and mixers are in test_timm_models.py; the others run with ``-m slow``."""
CASES = [
    pytest.param(family, name, marks=() if name in DEFAULT else pytest.mark.slow)
    for family, names in KNOWN.items()
    for name in names.split()
]


@pytest.mark.parametrize(("family", "name"), CASES)
def test_well_known_names(family: str, name: str) -> None:
    with torch.device("meta"):
        model = ARCHITECTURES.build(dict(type="timm", name=name, num_classes=10))
    assert model.family == family


def test_a_config_has_the_last_word() -> None:
    model = ARCHITECTURES.build(dict(type="timm", name="resnet18", num_classes=10, family="mlp"))
    assert model.family == "mlp" and {s.family for s in model.specs} == {"mlp"}


def test_operations_are_counted_and_weights_are_told_from_activations() -> None:
    with torch.device("meta"):
        layer, x = nn.Linear(8, 16), torch.empty(2, 5, 8)
        out, census = take_census(layer, x, layer.parameters())
        assert out.shape == (2, 5, 16) and census.macs == 2 * 5 * 8 * 16 and census.family == "mlp"
        conv = nn.Conv2d(4, 6, 3, padding=1)
        _, census = take_census(conv, torch.empty(1, 4, 7, 7), conv.parameters())
        assert census.macs == census.convolutions == 7 * 7 * 6 * 4 * 9 and census.family == "cnn"
        patches = nn.Conv2d(3, 6, 4, 4)
        _, census = take_census(patches, torch.empty(1, 3, 8, 8), patches.parameters())
        assert census.convolutions == 0 and census.family is None
        attention = nn.MultiheadAttention(8, 2, batch_first=True).train()
        run = nn.Module()
        run.forward = lambda x: attention(x, x, x)[0]  # type: ignore[method-assign]
        _, census = take_census(run, x, attention.parameters())
        assert census.attention and census.family == "attention"


def test_models_of_several_kinds_of_stages_are_hybrids() -> None:
    assert of_stages([None, None, "attention"]) == ["attention"] * 3 and of_stages(["cnn", None]) == ["cnn", "mlp"]
    assert of_model(["cnn", "attention"]) == "hybrid" and of_model(["cnn", "cnn"]) == "cnn"
