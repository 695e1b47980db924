"""Mixup and CutMix: closed forms, and a function of the seed."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import one_hot

from fbt_plugins.data import Mixing
from fbt_plugins.errors import ConfigError

LABELS = torch.arange(7)  # an odd batch, and every label another class: the share of each shows in the soft labels
IMAGES = torch.rand(7, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("seed", range(4))
def test_mixup(seed: int) -> None:
    images, soft = Mixing(10, mixup_alpha=0.8)(IMAGES, LABELS, seed)
    share = soft[0, 0]
    assert 0 < share < 1 and torch.allclose(soft.sum(1), torch.ones(7))
    assert torch.allclose(images, share * IMAGES + (1 - share) * IMAGES.roll(1, 0), atol=1e-6)
    assert torch.allclose(soft, share * one_hot(LABELS, 10) + (1 - share) * one_hot(LABELS.roll(1), 10), atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_cutmix(seed: int) -> None:
    images, soft = Mixing(10, cutmix_alpha=1.0)(IMAGES, LABELS, seed)
    own = (images == IMAGES).all(dim=1)
    other = (images == IMAGES.roll(1, 0)).all(dim=1)
    assert torch.equal(own, ~other) and (own == own[0]).all()  # one box for all
    assert torch.allclose(soft.diagonal(), own[0].float().mean().expand(7), atol=1e-6)
    assert torch.allclose(soft.sum(1), torch.ones(7))


def test_function_of_the_seed() -> None:
    mixing = Mixing(10, mixup_alpha=0.8, cutmix_alpha=1.0)
    first = mixing(IMAGES, LABELS, 1)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    second = mixing(IMAGES, LABELS, 1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], mixing(IMAGES, LABELS, 2)[0])


@pytest.mark.parametrize(("prob", "switch_prob"), [(1.0, 0.25), (0.5, 0.5), (0.0, 0.5), (1.0, 0.0), (1.0, 1.0)])
def test_probabilities(prob: float, switch_prob: float) -> None:
    mixing = Mixing(10, mixup_alpha=1.0, cutmix_alpha=1.0, prob=prob, switch_prob=switch_prob)
    mixed = cut = 0
    for seed in range(400):
        images, soft = mixing(IMAGES[:2], LABELS[:2], seed)
        is_mixup = not torch.isin(images, IMAGES[:2]).all()
        mixed += bool(is_mixup or soft[0, 0] < 1)
        cut += bool(not is_mixup and soft[0, 0] < 1)
    assert abs(mixed / 400 - prob) < 0.08  # a box of no area counts as unmixed
    assert abs(cut / 400 - prob * switch_prob) < 0.08


def test_label_smoothing_mixed_or_not() -> None:
    _, soft = Mixing(10, label_smoothing=0.1)(IMAGES, LABELS, 0)
    assert torch.allclose(soft, one_hot(LABELS, 10) * 0.9 + 0.01)
    _, mixed = Mixing(10, mixup_alpha=1.0, label_smoothing=0.1)(IMAGES, LABELS, 0)
    _, plain = Mixing(10, mixup_alpha=1.0)(IMAGES, LABELS, 0)
    assert torch.allclose(mixed, plain * 0.9 + 0.01)


def test_inputs_stay_as_they_are_and_a_single_image_mixes_with_itself() -> None:
    before = IMAGES.clone()
    Mixing(10, mixup_alpha=1.0, cutmix_alpha=1.0)(IMAGES, LABELS, 3)
    assert torch.equal(IMAGES, before)
    images, soft = Mixing(10, mixup_alpha=1.0)(IMAGES[:1], LABELS[:1], 3)
    assert torch.allclose(images, IMAGES[:1]) and torch.allclose(soft, one_hot(LABELS[:1], 10).float())


def test_parameters_outside_their_range_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        Mixing(10, mixup_alpha=-1, prob=1.5)
    assert len(caught.value.problems) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_same_draw_on_a_gpu() -> None:
    for arguments in ({"mixup_alpha": 0.8}, {"cutmix_alpha": 1.0}):
        on_cpu = Mixing(10, **arguments)(IMAGES, LABELS, 1)
        on_gpu = Mixing(10, **arguments)(IMAGES.cuda(), LABELS.cuda(), 1)
        assert all(b.is_cuda and torch.allclose(a, b.cpu(), atol=1e-6) for a, b in zip(on_cpu, on_gpu, strict=True))
