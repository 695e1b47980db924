"""Augmentation is a function of (seed, epoch, index), in any process."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from fbt_plugins.data import FashionMNISTMini, SeededSampler

CROP = [{"type": "RandomCrop", "size": 28, "padding": 4}, {"type": "RandomHorizontalFlip"}]
TIMM = [{"type": "timm", "input_size": 28, "is_training": True, "auto_augment": "rand-m9-mstd0.5", "re_prob": 0.5}]


@pytest.mark.parametrize("transforms", [CROP, TIMM])
def test_function_of_seed_epoch_and_index(transforms: list[dict[str, object]]) -> None:
    def images(epoch: int, seed: int = 0) -> torch.Tensor:
        data = FashionMNISTMini("val", transforms, seed=seed)
        return torch.stack([data[epoch, position]["inputs"] for position in range(8)])

    assert torch.equal(images(0), images(0)) and torch.equal(images(3), images(3))
    assert not torch.equal(images(0), images(1))
    assert not torch.equal(images(0), images(0, seed=1))


@pytest.mark.parametrize("transforms", [CROP, TIMM])
def test_fixed_views_come_round_again(transforms: list[dict[str, object]]) -> None:
    data, free = FashionMNISTMini("val", transforms), FashionMNISTMini("val", transforms, seed=5)
    data.fix_views(3, seed=5)
    for epoch in (0, 1, 2):
        sample, again = data[epoch, 7], data[epoch + 3, 7]
        assert sample["view"] == again["view"] == epoch and "view" not in free[epoch, 7]
        assert torch.equal(sample["inputs"], again["inputs"])
        assert torch.equal(sample["inputs"], free[epoch, 7]["inputs"])
    assert not torch.equal(data[0, 7]["inputs"], data[1, 7]["inputs"])
    assert not torch.equal(data[3, 7]["inputs"], free[3, 7]["inputs"])


def test_order_of_access_does_not_matter() -> None:
    data = FashionMNISTMini("val", CROP)
    forward = [data[2, position]["inputs"] for position in range(6)]
    backward = [data[2, position]["inputs"] for position in reversed(range(6))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forward, backward, strict=True))


def test_plain_positions_are_epoch_0() -> None:
    data = FashionMNISTMini("val", CROP)
    assert torch.equal(data[5]["inputs"], data[0, 5]["inputs"])
    assert torch.equal(data[-1]["inputs"], data[999]["inputs"]) and data[-1]["index"] == 999
    with pytest.raises(IndexError):
        data[1000]


@pytest.mark.parametrize("transforms", [CROP, TIMM])
def test_same_with_any_number_of_workers(transforms: list[dict[str, object]]) -> None:
    def two_epochs(workers: int, persistent: bool = False) -> list[torch.Tensor]:
        data = FashionMNISTMini("val", transforms)
        sampler = SeededSampler(data)
        loader = DataLoader(
            data,
            batch_size=100,
            sampler=sampler,
            num_workers=workers,
            persistent_workers=persistent,
        )
        batches = []
        for epoch in range(2):
            sampler.set_epoch(epoch)
            sampler.seek(900)
            batches += [batch["inputs"] for batch in loader]
        return batches

    expected = two_epochs(0)
    assert len(expected) == 2 and not torch.equal(*expected)
    assert all(torch.equal(a, b) for a, b in zip(two_epochs(2), expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(two_epochs(2, persistent=True), expected, strict=True))


def test_fingerprints_tell_images_and_labels_but_not_augmentation() -> None:
    plain = FashionMNISTMini("val").fingerprint()
    assert plain == FashionMNISTMini("val", CROP, seed=3).fingerprint() != FashionMNISTMini("test").fingerprint()
    data = FashionMNISTMini("val")
    data.images[999, 27, 27] += 1
    assert data.fingerprint() != plain
    data = FashionMNISTMini("val")
    data.labels[0] = 3 - data.labels[0]
    assert data.fingerprint() != plain
