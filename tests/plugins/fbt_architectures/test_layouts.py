"""The layouts that are found in timm's models give timm's own maps."""

from __future__ import annotations

import pytest
import torch
from drawn import ROWS, Row
from fbt_architectures.layouts import Shape, read_shape
from torch import nn

from fbt_plugins import ARCHITECTURES, FromMap, StagedModel, ToMap

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
