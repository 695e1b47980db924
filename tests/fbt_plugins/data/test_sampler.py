"""The order of images, and the seeds of their augmentation."""

from __future__ import annotations

import itertools
import pickle
from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import DataLoader

from fbt_plugins.data import EpochSampler, FashionMNISTMini, SeededSampler, image_dataset, sampler
from fbt_plugins.engine.runner import DistillRunner
from fbt_plugins.errors import FBTError


def order(size: int = 20, epoch: int = 0, **arguments: object) -> list[int]:
    one = SeededSampler(range(size), **arguments)  # type: ignore[arg-type]
    one.set_epoch(epoch)
    assert all(pair[0] == epoch for pair in one)
    return [index for _, index in one]


def test_function_of_seed_and_epoch() -> None:
    assert order() == order() and sorted(order()) == list(range(20))
    orders = {tuple(order(seed=seed, epoch=epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16  # seed + epoch alone would give 7
    assert order(shuffle=False, epoch=3) == list(range(20))


def test_built_as_mmengine_builds_it() -> None:
    built = DATA_SAMPLERS.build(
        {"type": "SeededSampler", "shuffle": True}, default_args={"dataset": range(9), "seed": 5}
    )
    assert [index for _, index in built] == order(9, seed=5)
    assert order(9, seed=None) == order(9, seed=0)


def test_seek_goes_on_in_the_middle_of_an_epoch() -> None:
    one = SeededSampler(range(10))
    one.set_epoch(2)
    whole = list(one)
    one.seek(7)
    assert list(one) == whole[7:] and len(one) == 10
    one.seek(10)
    assert list(one) == []
    one.set_epoch(2)
    assert list(one) == whole
    for beyond in (11, -1):
        with pytest.raises(FBTError, match=f"cannot go on at sample {beyond} of 10"):
            one.seek(beyond)


def shares(
    size: int, world: int, monkeypatch: pytest.MonkeyPatch, start: int = 0, **arguments: object
) -> list[list[int]]:
    found = []
    for rank in range(world):
        monkeypatch.setattr(sampler, "get_dist_info", lambda rank=rank: (rank, world))
        one = SeededSampler(range(size), **arguments)  # type: ignore[arg-type]
        one.set_epoch(1)
        assert len(one) == len(list(one))
        one.seek(start)
        found.append([index for _, index in one])
    return found


@pytest.mark.parametrize(("size", "world"), [(10, 3), (12, 4), (2, 5), (1, 2)])
def test_shares_interleave_to_the_common_order(size: int, world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = order(size, epoch=1)
    parts = shares(size, world, monkeypatch)
    assert len({len(part) for part in parts}) == 1
    together = [index for group in zip(*parts, strict=True) for index in group]
    assert together[:size] == whole  # what mmengine's collect_results does
    assert set(together) == set(range(size))


def test_shares_without_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = shares(10, 3, monkeypatch, round_up=False)
    assert [len(part) for part in parts] == [4, 3, 3]
    assert sorted(index for part in parts for index in part) == list(range(10))


def test_shares_seek_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shares(10, 3, monkeypatch, start=2) == [part[2:] for part in shares(10, 3, monkeypatch)]


def epochs_of(kind: str, in_memory: bool) -> list[torch.Tensor]:
    """The images of three epochs in the order of the data set, from a loader that the runner built."""
    dataset = dict(type="FashionMNISTMini", split="val", transforms=[dict(type="RandomCrop", size=28, padding=4)])
    config = dict(dataset=dataset, sampler=dict(type=kind), batch_size=60, num_batch_per_epoch=1, in_memory=in_memory)
    loader = DistillRunner.build_dataloader(SimpleNamespace(device="cpu"), config, seed=3)  # type: ignore[arg-type]
    images = []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        batch = next(iter(loader))
        images.append(batch["inputs"][batch["index"].argsort()])
    return images


@pytest.mark.parametrize("in_memory", [False, True])
def test_another_sampler_shows_other_views_in_other_epochs_as_ours_does(in_memory: bool) -> None:
    views = {kind: epochs_of(kind, in_memory) for kind in ("SeededSampler", "DefaultSampler")}
    for a, b in zip(*views.values(), strict=True):
        assert torch.equal(a, b)  # the epoch alone decides on an image's view
    first, second, third = views["DefaultSampler"]
    same = (first == second).flatten(1).all(1) | (second == third).flatten(1).all(1)
    assert same.float().mean() < 0.2


def test_a_sampler_without_end_begins_other_epochs_and_one_without_epochs_cannot_seek() -> None:
    data = FashionMNISTMini("val")
    endless = EpochSampler(data, dict(type="InfiniteSampler", shuffle=False), seed=1)
    keys = list(itertools.islice(endless, 2001))
    assert keys[999:1001] == [(0, 999), (1, 0)] and keys[2000] == (2, 0)
    for go_on in (endless.seek, endless.set_epoch):
        with pytest.raises(FBTError, match=r"--resume: InfiniteSampler cannot go on .* use SeededSampler"):
            go_on(4)
    ours = EpochSampler(data, dict(type="DefaultSampler"), seed=1)
    ours.set_epoch(2)
    whole = list(ours)
    ours.seek(7)
    assert list(ours) == whole[7:] and {epoch for epoch, _ in whole} == {2}
    assert list(EpochSampler(range(3), dict(type="DefaultSampler", shuffle=False))) == [0, 1, 2]  # takes no epochs


# ---- image dataset --------------------------------------------------------------------------------------------------


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


def test_fixed_views_of_images_in_memory_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    original = FashionMNISTMini.image
    monkeypatch.setattr(FashionMNISTMini, "image", lambda self, n: (made.append(n), original(self, n))[1])
    data = FashionMNISTMini("val", CROP)
    data.fix_views(2, seed=5)
    made.clear()
    first = data[0, 7]["inputs"]
    kept = first.clone()
    first.zero_()  # a sample is the taker's own
    assert torch.equal(data[2, 7]["inputs"], kept) and torch.equal(data[4, 7]["inputs"], kept) and made == [7]
    assert not torch.equal(data[1, 7]["inputs"], kept) and made == [7, 7]
    assert not pickle.loads(pickle.dumps(data))._kept  # workers begin with none
    data.fix_views(2, seed=6)
    assert not torch.equal(data[0, 7]["inputs"], kept)  # other views are other images

    for position in range(8):
        _ = data[0, position]
    assert all(t.untyped_storage().nbytes() == kept.nbytes for t in data._kept.values())  # no image behind a crop

    monkeypatch.setattr(image_dataset, "_MOST_KEPT", 2 * 1000 * kept.nbytes - 1)
    data.fix_views(2, seed=5)
    made.clear()
    assert torch.equal(data[0, 7]["inputs"], kept) and torch.equal(data[2, 7]["inputs"], kept) and made == [7, 7]


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
