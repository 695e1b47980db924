"""What must not matter to losses that compare relations, and points where a careless gradient is not a number."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fbt_plugins import LOSSES, Batch, Knowledge

BATCH = Batch(torch.tensor([0, 2, 1, 1]))


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def value(config: dict, features: Tensor, logits: Tensor | None = None) -> Tensor:
    """Against a fixed teacher of other widths, where there are features."""
    n = len(features)
    logits = random(1, n, 5) if logits is None else logits
    teacher = Knowledge(random(2, n, 7), random(3, n, 5))
    return LOSSES.build(config)(Knowledge(features, logits), teacher, Batch(BATCH.labels[:n]))


def test_kd_is_dkd_with_the_teachers_doubt_as_beta() -> None:
    """Image by image: KD = TCKD + (1 - p_t^c) NCKD."""
    for i, label in enumerate(BATCH.labels):
        student, teacher = (Knowledge(random(0, 4, 6)[i : i + 1], random(s, 4, 5)[i : i + 1]) for s in (1, 3))
        doubt = 1 - teacher.logits.softmax(1)[0, label].item()
        batch = Batch(label[None])
        kd = LOSSES.build(dict(type="KDLoss"))(student, teacher, batch)
        dkd = LOSSES.build(dict(type="DKDLoss", alpha=1.0, beta=doubt))(student, teacher, batch)
        torch.testing.assert_close(dkd, kd)


def test_dist_ignores_scale_and_offset_of_probabilities_and_an_offset_of_logits() -> None:
    features, logits, config = random(0, 4, 6), random(1, 4, 5), dict(type="DISTLoss")
    shifted = logits + random(2, 4, 1)
    torch.testing.assert_close(value(config, features, shifted), value(config, features, logits))
    paler = 0.3 * random(3, 4, 5).softmax(1) + 0.7 / 5  # the teacher's, on a smaller scale
    assert value(config, features, paler.log()).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("kind", ["RKDLoss", "CCLoss"])
def test_relations_ignore_rotation_and_scale_and_rkd_an_offset(kind: str) -> None:
    features = random(0, 4, 6)
    rotation = torch.linalg.qr(random(4, 6, 6))[0]
    moved = 3 * features @ rotation + (random(5, 1, 6) if kind == "RKDLoss" else 0)
    torch.testing.assert_close(value(dict(type=kind), moved), value(dict(type=kind), features))


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("kind", ["RKDLoss", "CCLoss"])
def test_images_that_coincide_have_bounded_gradients(kind: str, n: int) -> None:
    """Two equal images among others, all equal, or one alone: distances of exactly 0."""
    for features in (random(0, n, 6), random(0, 1, 6).repeat(n, 1)):
        features[-1] = features[0]
        features.requires_grad_()
        value(dict(type=kind), features).backward()
        assert features.grad is not None and features.grad.abs().max() < 100
