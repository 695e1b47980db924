"""InfoNCE's learnable temperature, and its negatives across processes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from fbt_losses.infonce import InfoNCELoss
from torch import distributed as dist

from fbt_plugins import Batch, Knowledge

BATCH = Batch(torch.zeros(4, dtype=torch.long))


def features(seed: int) -> torch.Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_temperature_is_trained() -> None:
    loss = InfoNCELoss()
    assert loss.temperature.item() == pytest.approx(0.07)
    loss(Knowledge(features(0), features(0)), Knowledge(features(1), features(1)), BATCH).backward()
    assert loss.log_temperature.grad.abs() > 0
    assert not list(InfoNCELoss(learnable=False).parameters())


@pytest.mark.parametrize("start", [0.01, 1.0])
def test_the_temperature_stays_within_its_bounds_and_can_come_back(start: float) -> None:
    """Pushed against a bound it stays; pushed back it leaves at once, however long it was pushed before."""
    loss = InfoNCELoss(temperature=start)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.5)
    outward = 1 if start == 0.01 else -1
    for _ in range(20):
        optimizer.zero_grad()
        (outward * loss.temperature).backward()
        optimizer.step()
    low, high = InfoNCELoss.BOUNDS
    assert low * 0.999 <= loss.temperature.item() <= high * 1.001
    assert loss.log_temperature.item() == pytest.approx(math.log(start), abs=1e-6)
    for _ in range(3):
        optimizer.zero_grad()
        (-outward * 10 * loss.temperature).backward()
        optimizer.step()
    assert abs(loss.temperature.item() - start) > 1e-4


def test_a_temperature_beyond_a_bound_counts_as_the_bound() -> None:
    loss = InfoNCELoss()
    for value, bound in ((-100.0, 0.01), (100.0, 1.0)):
        with torch.no_grad():
            loss.log_temperature.fill_(value)
        assert loss.temperature.item() == pytest.approx(bound)


def work(rank: int, folder: str, symmetric: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mine = slice(2 * rank, 2 * rank + 2)
    student, teacher = features(0)[mine].requires_grad_(), features(1)[mine].requires_grad_()
    loss = InfoNCELoss(symmetric=symmetric).double()
    value = loss(Knowledge(student, student), Knowledge(teacher, teacher), BATCH)
    (value / 2).backward()  # DDP averages over the two ranks
    dist.all_reduce(loss.log_temperature.grad)
    result = {
        "student": student.grad,
        "teacher": teacher.grad,
        "tau": loss.log_temperature.grad,
        "loss": value.detach(),
    }
    torch.save(result, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow  # engine/test_processes.py holds the same of a whole model
@pytest.mark.parametrize("symmetric", [False, True])
def test_two_processes_have_the_gradients_of_one(tmp_path: Path, symmetric: bool) -> None:
    mp.spawn(work, (str(tmp_path), symmetric), nprocs=2)
    student, teacher = features(0).requires_grad_(), features(1).requires_grad_()
    loss = InfoNCELoss(symmetric=symmetric).double()
    value = loss(Knowledge(student, student), Knowledge(teacher, teacher), BATCH)
    value.backward()
    ranks = [torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(2)]
    close = dict(rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(sum(r["loss"] for r in ranks) / 2, value.detach(), **close)
    torch.testing.assert_close(torch.cat([r["student"] for r in ranks]), student.grad, **close)
    torch.testing.assert_close(torch.cat([r["teacher"] for r in ranks]), teacher.grad, **close)
    torch.testing.assert_close(ranks[0]["tau"], loss.log_temperature.grad, **close)
