"""In a distiller: as teacher and as student, with FBT's fusion model between."""

from typing import Any

import pytest
import torch
from small import SMALL

from fbt_plugins import Batch
from fbt_plugins.distill.distiller import Distiller

RESMLP = dict(type="timm", name="resmlp_s4_patch4_32", num_classes=7, embed_dim=16)
PAIRS = {
    "huggingface teaches timm": ("swin", None),
    "timm teaches huggingface": (None, "resnet"),
    "vit teaches convnext": ("vit", "convnext"),
    "convnext teaches dinov2": ("convnext", "dinov2_with_registers"),
    "beit teaches swin": ("beit", "swin"),
}


def model(name: str | None) -> dict[str, Any]:
    return (
        RESMLP
        if name is None
        else dict(type="huggingface", num_classes=7, input_size=64, **SMALL[name])
        | (dict(input_size=SMALL[name]["image_size"]) if "image_size" in SMALL[name] else {})
    )


@pytest.mark.parametrize("splice", ["S1-3+T4", "T1-3+S4"])
@pytest.mark.parametrize("pair", PAIRS)
def test_trains_with_a_fusion_model(pair: str, splice: str) -> None:
    teacher, student = map(model, PAIRS[pair])
    torch.manual_seed(0)
    distiller = Distiller(
        student,
        teacher,
        fusion=dict(type="L2GFusion", splice=splice),
        edges=["teacher_to_student", "teacher_to_fusion", "fusion_to_student"],
        feature_loss=dict(type="InfoNCELoss"),
        logit_loss=dict(type="OFALoss"),
        task_loss=dict(type="CrossEntropyLoss"),
        image_size=(32, 32),
    ).train()
    before = {k: v.clone() for k, v in distiller.teacher.state_dict().items()}
    losses = distiller.losses(torch.rand(4, 3, 32, 32), Batch(torch.tensor([0, 1, 2, 6])))
    assert len(losses) >= 7 and all(torch.isfinite(v) for v in losses.values())
    sum(losses.values()).backward()  # type: ignore[union-attr]
    without = [n for n, p in distiller.student.named_parameters() if p.grad is None]
    assert not [n for n in without if not n.endswith("mask_token")]
    assert all(p.grad is None for p in distiller.teacher.parameters())
    assert all(torch.equal(v, before[k]) for k, v in distiller.teacher.state_dict().items())
