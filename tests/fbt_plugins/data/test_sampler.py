"""The order: a function of (seed, epoch), in equal interleaved shares, that can be taken up anywhere."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import DATA_SAMPLERS

from fbt_plugins.data import EpochSampler, FashionMNISTMini, SeededSampler, sampler
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
