"""All of timm: the smallest model of each family that can be cut is exact at its own image size (minutes in all)."""

from __future__ import annotations

import pytest

from fbt_plugins import ARCHITECTURES

SMALLEST = set(
    """
    beit_base_patch16_224 cait_xxs24_224 convit_tiny convmixer_768_32 cpubone_nano cs3darknet_focus_s csatv2
    cspnext_tiny davit_tiny deit_tiny_distilled_patch16_224 deit_tiny_patch16_224 densenet121 dla46x_c dpn48b
    edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientvit_b0 efficientvit_l1 efficientvit_m0
    ese_vovnet19b_slim_dw eva02_tiny_patch14_336 fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny ghostnet_050
    gmlp_ti16_224 halonet_h1 hardcorenas_b hgnetv2_b0 hiera_tiny_224 hieradet_small hrnet_w18_small iformer_t
    inception_next_atto inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small legacy_seresnet18
    legacy_xception levit_128s levit_256d lowformer_b0 mobilenetv3_small_050 mobilenetv5_base mobilevit_xxs
    mvitv2_tiny naflexvit_base_patch16_parfac_gap nest_tiny nextvit_small poolformerv2_s12 pvt_v2_b0 qwen3_vit_88m
    rdnet_tiny regnetx_002 repghostnet_050 repvit_m1 res2next50 resnest14d resnetv2_18 rexnet_100
    samvit_base_patch16_224 selecsls42 sequencer2d_s shvit_s1 skresnet18 starnet_s050 swiftformer_xs
    swin_tiny_patch4_window7_224 swinv2_cr_tiny_224 swinv2_tiny_window8_256 test_byobnet test_coatnet test_convnext
    test_efficientnet test_mambaout test_nfnet test_resnet test_vit test_vit_relpos tiny_vit_5m_224 tresnet_m
    twins_svt_small vgg11 visformer_tiny vit_tiny_r_s16_p8_224 vitamin_small_224 volo_d1_224 xception41p
    xcit_nano_12_p8_224
""".split()  # noqa: SIM905
)
"""One of each module and class; deepseek_vit (412 M parameters) is left to the report in docs/coverage.md."""


def test_there_are_at_least_ninety_families() -> None:
    assert len(SMALLEST) >= 90


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SMALLEST))
def test_stages_and_head_are_the_model(name: str) -> None:
    proof = ARCHITECTURES.build(dict(type="timm", name=name, num_classes=7)).verify()
    assert proof.gradients > 0
