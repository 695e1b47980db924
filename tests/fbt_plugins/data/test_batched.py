"""Images in memory, augmented and mixed by the batch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import assert_same, builder, run, run_until
from torch import Tensor
from torch.nn.functional import one_hot
from torch.utils.data import DataLoader

from fbt_plugins.data import FashionMNISTMini, ImageDataset, InMemoryDataset, InMemoryLoader, Mixing, SeededSampler
from fbt_plugins.data.batched import Draws
from fbt_plugins.errors import ConfigError

CROP = dict(type="RandomCrop", size=4, padding=1)
FLIPS = [dict(type="RandomHorizontalFlip"), dict(type="RandomVerticalFlip", p=0.25)]
ERASE = dict(type="RandomErasing", p=0.7, scale=(0.1, 0.6), ratio=(0.3, 3.3), value=(7, 8, 9))


def pictures(transforms: list[dict[str, Any]], seed: int = 0, colour: bool = True) -> InMemoryDataset:
    """Images of 4x4 pixels, no two alike."""
    shape = (10, 3, 4, 4) if colour else (10, 4, 4)
    images = torch.arange(10 * 48 if colour else 160).reshape(shape).remainder(251).to(torch.uint8)
    return InMemoryDataset([str(n) for n in range(10)], images, torch.arange(10), transforms, seed)


def batches(dataset: ImageDataset, keys: list[tuple[int, int]], size: int = 1000) -> list[dict[str, Tensor]]:
    return list(InMemoryLoader(dataset, keys, size))


def outcomes(images: Tensor) -> Counter[bytes]:
    return Counter(image.numpy().tobytes() for image in images)


@pytest.mark.parametrize("transforms", [[CROP], FLIPS, [CROP, *FLIPS]], ids=["crop", "flips", "both"])
def test_every_outcome_is_as_frequent_as_on_the_ordinary_path(transforms: list[dict[str, Any]]) -> None:
    count, dataset = 2000, pictures(transforms)
    batched = outcomes(batches(dataset, [(epoch, 3) for epoch in range(count)], count)[0]["inputs"])
    single = outcomes(torch.stack([dataset[epoch, 3]["inputs"] for epoch in range(count)]))
    assert batched.keys() == single.keys()
    for outcome, found in batched.items():  # the difference of two counts has at most the variance of their sum
        assert abs(found - single[outcome]) < 5 * (found + single[outcome]) ** 0.5
    assert batched != single  # by other random numbers


def test_erased_rectangles_are_as_large_and_lie_where_they_do_on_the_ordinary_path() -> None:
    count, dataset = 3000, pictures([dict(type="Pad", padding=4), ERASE])
    batched = batches(dataset, [(epoch, 3) for epoch in range(count)], count)[0]["inputs"]
    single = torch.stack([dataset[epoch, 3]["inputs"] for epoch in range(count)])
    blank = pictures([dict(type="Pad", padding=4)])[3]["inputs"]
    value = torch.tensor([7, 8, 9], dtype=torch.uint8)[:, None, None]
    for images in (batched, single):
        erased = (images != blank).all(1, keepdim=True)
        assert torch.equal(images, torch.where(erased, value, blank).expand_as(images))
    maps = [(images != blank).all(1).float() for images in (batched, single)]
    frequency = [m.mean(0) for m in maps]  # of each pixel; 5 standard deviations of the difference
    assert (frequency[0] - frequency[1]).abs().max() < 5 * (2 * 0.25 / count) ** 0.5
    areas = [m.flatten(1).sum(1) for m in maps]
    assert abs(float((areas[0] == 0).float().mean() - (areas[1] == 0).float().mean())) < 5 * (2 * 0.25 / count) ** 0.5
    for order in (1, 2):
        moments = [a[a > 0].pow(order) for a in areas]
        spread = (moments[0].var() / len(moments[0]) + moments[1].var() / len(moments[1])) ** 0.5
        assert abs(float(moments[0].mean() - moments[1].mean())) < 5 * float(spread)


def test_an_image_is_the_same_in_any_batch_and_another_in_any_epoch() -> None:
    dataset = pictures([CROP, *FLIPS, ERASE])
    keys = [(epoch, position) for epoch in range(40) for position in range(10)]
    whole = torch.cat([b["inputs"] for b in batches(dataset, keys)])
    parts = batches(dataset, keys[::-1], 7)
    assert torch.equal(torch.cat([b["inputs"] for b in parts]).flip(0), whole)
    assert torch.equal(torch.cat([b["index"] for b in parts]).flip(0), torch.arange(10).repeat(40))
    assert torch.equal(torch.cat([b["labels"] for b in parts]).flip(0), torch.arange(10).repeat(40))
    assert len(outcomes(whole.reshape(40, 10, -1)[:, 3])) > 30
    other = torch.cat([b["inputs"] for b in batches(pictures([CROP, *FLIPS, ERASE], seed=1), keys)])
    assert (other != whole).flatten(1).any(1).float().mean() > 0.9


@pytest.mark.parametrize("colour", [True, False])
def test_transforms_alike_for_all_images_give_the_same_bits(colour: bool) -> None:
    steps = [
        dict(type="Pad", padding=2),
        dict(type="Resize", size=(12, 12), interpolation="bicubic"),
        dict(type="CenterCrop", size=9),
    ]
    dataset = pictures(steps, colour=colour)
    loader = DataLoader(dataset, 4, sampler=SeededSampler(dataset, shuffle=False))
    for ours, theirs in zip(InMemoryLoader(dataset, SeededSampler(dataset, False), 4), loader, strict=True):
        for name, value in theirs.items():
            assert torch.equal(ours[name], value) and ours[name].dtype == value.dtype


def test_lengths_seeking_and_fixed_views() -> None:
    dataset = pictures([CROP])
    sampler = SeededSampler(dataset)
    for drop_last, sizes in ((True, [4, 4]), (False, [4, 4, 2])):
        loader = InMemoryLoader(dataset, sampler, 4, drop_last)
        assert len(loader) == len(sizes) and [len(b["inputs"]) for b in loader] == sizes
    sampler.set_epoch(3)
    whole = list(loader)
    sampler.seek(4)
    assert all(torch.equal(a["inputs"], b["inputs"]) for a, b in zip(list(loader), whole[1:], strict=True))
    dataset.fix_views(2, seed=5)
    shown = {epoch: batches(dataset, [(epoch, p) for p in range(10)])[0] for epoch in range(4)}
    assert torch.equal(shown[0]["inputs"], shown[2]["inputs"]) and not torch.equal(
        shown[0]["inputs"], shown[1]["inputs"]
    )
    assert shown[3]["view"].tolist() == [1] * 10


def test_draws_are_uniform_and_independent() -> None:
    draws = Draws(2**64 - 1, torch.arange(100).repeat_interleave(500), torch.arange(500).repeat(100))
    numbers = torch.cat([draws.uniform(2), draws.uniform(1)], 1)
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = torch.histc(numbers, 20, 0, 1)
    assert ((counts - len(numbers) * 3 / 20) ** 2 / (len(numbers) * 3 / 20)).sum() < 50  # chi2 of 19, p > 1e-4
    columns = torch.cat([numbers, numbers.roll(1, 0), numbers.roll(500, 0)], 1)  # neighbours in position and view
    assert (torch.corrcoef(columns.T) - torch.eye(9)).abs().max() < 5 / len(numbers) ** 0.5


@pytest.mark.parametrize(
    ("transform", "says"),
    [
        (dict(type="ColorJitter"), "which ColorJitter cannot; known: RandomCrop"),
        (dict(type="timm", input_size=32), "which timm cannot"),
        (dict(type="RandomCrop", size=40, pad_if_needed=True), "not by pad_if_needed"),
    ],
)
def test_what_no_batch_can_be_given_is_refused(transform: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=r"FashionMNISTMini.transforms\[0\]: in_memory=True") as error:
        dataset = FashionMNISTMini("val", [transform])
        InMemoryLoader(dataset, SeededSampler(dataset), 4)
    assert says in str(error.value) and str(error.value).endswith("or set in_memory=False")


def test_a_run_in_memory_goes_on_exactly(tmp_path: Path) -> None:
    config = builder(tmp_path)
    options = {f"{split}_dataloader.in_memory": True for split in ("train", "val", "test")}
    options |= {"train_cfg": dict(by_epoch=False, max_iters=10, val_interval=4), "default_hooks.checkpoint.interval": 3}
    whole = run(config("whole", **options))
    assert isinstance(whole.train_dataloader, InMemoryLoader)
    run_until(config("cut", **options), 8)
    assert_same(whole, run(config("cut", **options, resume=True)), "iter_10.pth")


# ---- mixing ---------------------------------------------------------------------------------------------------------


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


def test_images_with_and_without_labels_mix_among_themselves() -> None:
    labels = torch.tensor([3, -1, -1, 5, -1, 0, 3])
    with_, without = (labels >= 0).nonzero().flatten(), (labels < 0).nonzero().flatten()
    both = dict(mixup_alpha=1.0, cutmix_alpha=1.0, label_smoothing=0.1)
    mixing, whole = Mixing(10, **both, all_labelled=False), Mixing(10, **both)
    for seed in range(4):
        images, soft = mixing(IMAGES, labels, seed)
        of_labelled = whole(IMAGES[with_], labels[with_], seed)
        assert torch.equal(images[with_], of_labelled[0]) and torch.equal(soft[with_], of_labelled[1])
        assert not soft[without].any() and not torch.equal(images[without], IMAGES[without])
        of_others = Mixing(0, **both)(IMAGES[without], labels[without], seed)
        assert torch.equal(images[without], of_others[0]) and torch.equal(of_others[1], labels[without])
        assert all(map(torch.equal, mixing(IMAGES, LABELS, seed), whole(IMAGES, LABELS, seed)))


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
