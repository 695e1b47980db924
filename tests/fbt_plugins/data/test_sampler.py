"""The order: a function of (seed, epoch), in equal interleaved shares, that can be taken up anywhere."""

from __future__ import annotations

import pytest
from mmengine.registry import DATA_SAMPLERS

from fbt_plugins.data import SeededSampler, sampler
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
