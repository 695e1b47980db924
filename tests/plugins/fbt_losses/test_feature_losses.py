"""Losses of features: CRD with its memory banks, InfoNCE, and relations between images."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from fbt_losses import crd
from fbt_losses.crd import CRDLoss
from fbt_losses.infonce import InfoNCELoss
from fbt_losses.rsd import RSDLoss
from torch import Tensor
from torch import distributed as dist

from fbt_plugins import LOSSES, Batch, Knowledge

SIZE, TAU = 5, 0.5


def made(size: int = SIZE, dim: int = 2, **options: float) -> CRDLoss:
    """With embeddings that pass features of width 2 on."""
    torch.manual_seed(0)
    loss = CRDLoss(dim=dim, temperature=TAU, **options)  # type: ignore[arg-type]
    loss.setup((), (), {"student_features": 2, "teacher_features": 2, "num_samples": size})
    for embedding in (loss.embed_student, loss.embed_teacher):
        torch.nn.init.eye_(embedding.weight), torch.nn.init.zeros_(embedding.bias)
    return loss.double()


def features(seed: int, n: int = 4) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def call(loss: CRDLoss, student: Tensor, teacher: Tensor, index: list[int]) -> Tensor:
    return loss(Knowledge(student, student), Knowledge(teacher, teacher), Batch(None, torch.tensor(index)))


def unit(row: list[float]) -> list[float]:
    return [x / math.hypot(*row) for x in row]


class Slow:
    """The authors' steps, one number at a time, with all other images as negatives."""

    def __init__(self, loss: CRDLoss) -> None:
        self.banks = [loss.bank_student.tolist(), loss.bank_teacher.tolist()]
        self.z: list[float] = []

    def step(self, given: list[Tensor], index: list[int]) -> float:
        embedded = [[unit(row) for row in x.tolist()] for x in given]
        total, m = 0.0, SIZE - 1
        for side in (0, 1):
            bank = self.banks[1 - side]
            e = [[math.exp(sum(map(math.prod, zip(v, w, strict=True))) / TAU) for w in bank] for v in embedded[side]]
            if len(self.z) <= side:
                self.z.append(sum(map(sum, e)) / (len(e) * SIZE) * SIZE)
            for i, row in zip(index, e, strict=True):
                h = [x / self.z[side] / (x / self.z[side] + m / SIZE) for x in row]
                total -= sum(math.log(h[j] if j == i else 1 - h[j]) for j in range(SIZE)) / len(index)
        for bank, rows in zip(self.banks, embedded, strict=True):
            for i, row in zip(index, rows, strict=True):
                bank[i] = unit([0.5 * a + 0.5 * b for a, b in zip(bank[i], row, strict=True)])
        return total


def test_three_steps_are_the_authors() -> None:
    """The first estimates Z, which stays; each finds the banks as the last one left them."""
    loss = made()
    slow = Slow(loss)
    for step, index in enumerate(([3, 0], [1, 3], [4, 2])):
        given = [features(2 * step, 2), features(2 * step + 1, 2)]
        assert call(loss, *given, index).item() == pytest.approx(slow.step(given, index), rel=1e-6)
    torch.testing.assert_close(loss.bank_student, torch.tensor(slow.banks[0], dtype=torch.float64))
    torch.testing.assert_close(loss.bank_teacher, torch.tensor(slow.banks[1], dtype=torch.float64))


def test_backward_sees_the_banks_as_they_were() -> None:
    """An update in place must not reach the gradient."""
    given, grads = features(1), []
    for training in (True, False):
        loss = made().train(training)
        if not training:
            once = made()
            call(once, features(0), given, [0, 1, 2, 3])
            loss.log_mean.copy_(once.log_mean)
        student = features(0).requires_grad_()
        call(loss, student, given, [0, 1, 2, 3]).backward()
        grads.append(student.grad)
    torch.testing.assert_close(*grads)


def test_banks_begin_as_bounded_noise_and_change_in_training_only() -> None:
    loss = made(size=200, dim=12)
    assert 0.45 < loss.bank_student.abs().max() <= 0.5 and not torch.equal(loss.bank_student, loss.bank_teacher)
    before = loss.bank_student.clone()
    call(loss.eval(), features(0), features(1), [0, 1, 2, 199])
    assert torch.equal(loss.bank_student, before) and not loss.estimated
    call(loss.train(), features(0), features(1), [0, 1, 2, 199])
    assert ((loss.bank_student != before).any(1).nonzero()[:, 0] == torch.tensor([0, 1, 2, 199])).all()
    assert loss.estimated
    assert not loss.state_dict().keys() & {"bank_student", "bank_teacher", "log_mean", "estimated"}


def test_of_an_image_that_is_there_twice_the_last_counts() -> None:
    loss, last = made(), made()
    student, teacher = features(0), features(1)
    call(loss, student, teacher, [2, 0, 2, 1])
    call(last, student[1:], teacher[1:], [0, 2, 1])
    torch.testing.assert_close(loss.bank_student, last.bank_student)


@pytest.mark.parametrize(("negatives", "count"), [(3, 3), (9, 9), (16384, 9)])
def test_negatives_are_other_images_and_none_twice(negatives: int, count: int) -> None:
    loss = made(size=10, negatives=negatives)
    seen: list[Tensor] = []
    scores = loss._scores
    loss._scores = lambda v, bank, chosen: (seen.append(chosen), scores(v, bank, chosen))[1]  # type: ignore[method-assign]
    for _ in range(20):
        call(loss, features(0), features(1), [0, 4, 5, 9])
    for chosen in seen:
        assert chosen.shape == (4, 1 + count) and chosen[:, 0].tolist() == [0, 4, 5, 9]
        assert all(len(set(row)) == 1 + count and set(row) <= set(range(10)) for row in chosen.tolist())
    assert len({tuple(chosen[0, 1:].tolist()) for chosen in seen}) > 5
    assert {x for chosen in seen for x in chosen[0, 1:].tolist()} == set(range(1, 10))


def test_what_is_missing_is_said() -> None:
    with pytest.raises(ValueError, match=r"needs batch\.index"):
        made()(Knowledge(features(0), features(0)), Knowledge(features(1), features(1)), Batch(None))
    with torch.device("meta"):
        loss = CRDLoss()
        loss.setup((), (), {"student_features": 2, "teacher_features": 3})
    assert loss.bank_student.shape == (0, 128)
    with pytest.raises(ValueError, match=r"needs data_info\['num_samples'\]"):
        call(made(size=0), features(0), features(1), [0, 1, 2, 3])


def two_steps(loss: CRDLoss, mine: slice) -> dict[str, Tensor]:
    student = features(0).requires_grad_()
    call(loss, features(2)[mine], features(3)[mine], [4, 1, 0, 2][mine])
    value = call(loss, student[mine], features(1)[mine], [3, 1, 2, 0][mine])
    value.backward()
    return {**dict(loss.named_buffers()), "value": value.detach(), "gradient": student.grad}  # type: ignore[dict-item]


def test_two_ranks_keep_the_banks_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads for two processes; that all_ranks gathers what processes give is seen below."""
    barrier, given = threading.Barrier(2, timeout=60), dict[int, Tensor]()

    def exchange(rows: Tensor) -> Tensor:
        given[int(threading.current_thread().name)] = rows.detach()
        barrier.wait()
        gathered = torch.cat([given[0], given[1]])
        barrier.wait()
        return gathered

    whole = two_steps(made(), slice(0, 4))
    monkeypatch.setattr(crd, "all_ranks", exchange)
    losses, ranks = [made(), made()], dict[int, dict[str, Tensor]]()

    def work(rank: int) -> None:
        ranks[rank] = two_steps(losses[rank], slice(2 * rank, 2 * rank + 2))

    threads = [threading.Thread(target=work, args=(rank,), name=str(rank)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in ("bank_student", "bank_teacher", "log_mean"):
        assert torch.equal(ranks[0][name], ranks[1][name])
    for name in ("bank_student", "bank_teacher", "log_mean", "value", "gradient"):
        torch.testing.assert_close((ranks[0][name] + ranks[1][name]) / 2, whole[name])


# ---- infonce --------------------------------------------------------------------------------------------------------


BATCH = Batch(torch.zeros(4, dtype=torch.long))


def infonce_features(seed: int) -> torch.Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_temperature_is_trained() -> None:
    loss = InfoNCELoss()
    assert loss.temperature.item() == pytest.approx(0.07)
    loss(
        Knowledge(infonce_features(0), infonce_features(0)), Knowledge(infonce_features(1), infonce_features(1)), BATCH
    ).backward()
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
    student, teacher = infonce_features(0)[mine].requires_grad_(), infonce_features(1)[mine].requires_grad_()
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
    student, teacher = infonce_features(0).requires_grad_(), infonce_features(1).requires_grad_()
    loss = InfoNCELoss(symmetric=symmetric).double()
    value = loss(Knowledge(student, student), Knowledge(teacher, teacher), BATCH)
    value.backward()
    ranks = [torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(2)]
    close = dict(rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(sum(r["loss"] for r in ranks) / 2, value.detach(), **close)
    torch.testing.assert_close(torch.cat([r["student"] for r in ranks]), student.grad, **close)
    torch.testing.assert_close(torch.cat([r["teacher"] for r in ranks]), teacher.grad, **close)
    torch.testing.assert_close(ranks[0]["tau"], loss.log_temperature.grad, **close)


# ---- rsd -------------------------------------------------------------------------------------------------------------


def rsd(**options: float | str) -> RSDLoss:
    torch.manual_seed(0)
    loss = RSDLoss(**options)  # type: ignore[arg-type]
    loss.setup((), (), {"student_features": 2, "teacher_features": 3, "num_classes": 5})
    return loss.double()


def normalised(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(0)) / (x.std(0) + 1e-5)


def by_formula(loss: RSDLoss, student: Tensor, teacher: Tensor) -> float:
    """The formula, written once more: numpy, one pair of dimensions at a time."""
    first, norm, _, last = loss.projector
    hidden = student.numpy() @ first.weight.detach().numpy().T
    hidden = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + norm.eps)
    hidden = hidden * np.vectorize(lambda x: (1 + math.erf(x / math.sqrt(2))) / 2)(hidden)
    z_s, z_t = normalised(hidden @ last.weight.detach().numpy().T), normalised(teacher.numpy())
    total = 0.0
    for i in range(z_t.shape[1]):
        for j in range(z_t.shape[1]):
            p = (z_t[:, i] * z_s[:, j]).mean()
            total += (p - 1) ** 2 if i == j else loss.kappa * p**2
    return total


@pytest.mark.parametrize("kappa", [0.0, 0.01, 3.0])
def test_rsd_is_its_formula_with_the_projector(kappa: float) -> None:
    loss, student, teacher = rsd(kappa=kappa), random(0, 6, 2), 5 + random(1, 6, 3)
    assert [tuple(p.shape) for p in loss.parameters()] == [(4, 2), (4,), (4,), (3, 4)]  # no bias but BatchNorm's
    found = loss(Knowledge(student, random(2, 6, 5)), Knowledge(teacher, random(3, 6, 5)), Batch(None)).item()
    assert found == pytest.approx(by_formula(loss, student, teacher), rel=1e-9)
    logits = rsd(kappa=kappa, of="logits")
    found = logits(Knowledge(student, random(2, 6, 5)), Knowledge(teacher, random(3, 6, 5)), Batch(None)).item()
    assert found == pytest.approx(by_formula(logits, random(2, 6, 5), random(3, 6, 5)), rel=1e-9)


def rsd_of_a_rank(rank: int, folder: str, gather: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mine = slice(3 * rank, 3 * rank + 3)
    student = random(0, 6, 3)[mine].requires_grad_()
    loss = rsd(gather=gather)
    loss.projector = torch.nn.Identity()  # BatchNorm's statistics would be each process's own
    value = loss(Knowledge(student, student), Knowledge(random(1, 6, 3)[mine], student), Batch(None))
    (value / 2).backward()  # DDP averages over the two ranks
    torch.save((value.detach(), student.grad), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("gather", [False, True])
def test_rsd_takes_its_own_batch_or_that_of_all_processes(tmp_path: Path, gather: bool) -> None:
    mp.start_processes(rsd_of_a_rank, (str(tmp_path), gather), nprocs=2, start_method="fork")
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    student, whole = random(0, 6, 3).requires_grad_(), rsd()
    whole.projector = torch.nn.Identity()
    batches = [slice(0, 6)] if gather else [slice(0, 3), slice(3, 6)]
    values = [
        whole(Knowledge(student[b], student[b]), Knowledge(random(1, 6, 3)[b], student[b]), Batch(None))
        for b in batches
    ]
    value = torch.stack(values).mean()
    value.backward()
    torch.testing.assert_close((ranks[0][0] + ranks[1][0]) / 2, value.detach())
    torch.testing.assert_close(torch.cat([grad for _, grad in ranks]), student.grad)


# ---- relations ------------------------------------------------------------------------------------------------------


RELATIONS_BATCH = Batch(torch.tensor([0, 2, 1, 1]))


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def value(config: dict, features: Tensor, logits: Tensor | None = None) -> Tensor:
    """Against a fixed teacher of other widths, where there are features."""
    n = len(features)
    logits = random(1, n, 5) if logits is None else logits
    teacher = Knowledge(random(2, n, 7), random(3, n, 5))
    return LOSSES.build(config)(Knowledge(features, logits), teacher, Batch(RELATIONS_BATCH.labels[:n]))


def test_kd_is_dkd_with_the_teachers_doubt_as_beta() -> None:
    """Image by image: KD = TCKD + (1 - p_t^c) NCKD."""
    for i, label in enumerate(RELATIONS_BATCH.labels):
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
