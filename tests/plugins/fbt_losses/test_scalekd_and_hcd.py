"""ScaleKD's and HCD's losses against their formulas, written once more in numpy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from fbt_losses.hcd import HCDLoss
from fbt_losses.scalekd import QueryProjector, ScaleKDLoss
from torch import Tensor, nn

from fbt_plugins import Batch, Knowledge, StageSpec
from fbt_plugins.distill.loss_contract import ModelInfo, set_up

STUDENT = StageSpec("NCHW", 3, (4, 5))
TEACHER = StageSpec("NLC", 6, (3, 2), 1, family="attention", prefix=torch.ones(1, 6))


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(layer: nn.Linear, x: np.ndarray) -> np.ndarray:
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def projected(p: QueryProjector, x: np.ndarray) -> np.ndarray:
    """(N, C, H, W) -> (N, positions, width), one image, query and head at a time."""
    convolution, norm = p.read[0], p.read[1]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    n, _, height, width = x.shape
    maps = np.empty_like(x)
    for i, j in itertools.product(range(height), range(width)):
        patch = padded[:, :, i : i + 3, j : j + 3]
        maps[:, :, i, j] = np.einsum("nchw,dchw->nd", patch, convolution.weight.detach().numpy())
    maps += convolution.bias.detach().numpy()[:, None, None]
    mean, var = (f(maps, axis=(0, 2, 3), keepdims=True) for f in (np.mean, np.var))
    maps = np.maximum((maps - mean) / np.sqrt(var + norm.eps), 0) + p.place.detach().numpy()
    tokens = maps.reshape(n, -1, height * width).transpose(0, 2, 1)
    queries = linear(p.ask[2], np.maximum(linear(p.ask[0], p.query.detach().numpy()), 0))
    keys, values = linear(p.key, tokens), linear(p.value, tokens)
    size = queries.shape[1] // p.heads
    out = np.empty((n, *queries.shape))
    for image, query, head in itertools.product(range(n), range(len(queries)), range(p.heads)):
        own = slice(head * size, (head + 1) * size)
        scores = np.exp(5.0 / math.sqrt(size) * keys[image, :, own] @ queries[query, own])
        out[image, query, own] = scores / scores.sum() @ values[image, :, own]
    out = linear(p.gather, out)
    out = (out - out.mean(2, keepdims=True)) / np.sqrt(out.var(2, keepdims=True) + p.norm.eps)
    return out + linear(p.mlp[2], np.maximum(linear(p.mlp[0], out), 0))


def cosine_basis(n: int) -> np.ndarray:
    """The orthonormal matrix of the discrete cosine transform (type II), a frequency in each row."""
    k, i = np.arange(n)[:, None], np.arange(n)
    basis = np.sqrt(2 / n) * np.cos(np.pi * (i + 0.5) * k / n)
    basis[0] /= np.sqrt(2)
    np.testing.assert_allclose(basis @ basis.T, np.eye(n), atol=1e-12)
    return basis


def high(maps: np.ndarray) -> np.ndarray:
    """IDCT(M DCT(.)) of (N, C, H, W): M takes the constant term away."""
    rows, columns = cosine_basis(maps.shape[2]), cosine_basis(maps.shape[3])
    spectrum = rows @ maps @ columns.T
    spectrum[:, :, 0, 0] = 0
    return rows.T @ spectrum @ columns


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("head_dim", [2, 128])
def test_scalekd_is_its_formula(head_dim: int) -> None:
    torch.manual_seed(0)
    loss = ScaleKDLoss(stages=(1,), frequency_stages=(1,), head_dim=head_dim)
    set_up(loss, ModelInfo([STUDENT], 3), ModelInfo([TEACHER], 6), {"num_classes": 5})
    loss.double()
    x, y = random(0, 2, 3, 4, 5), random(1, 2, 7, 6)
    found = loss(Knowledge(x, x, {1: x}), Knowledge(y, y, {1: y}), Batch(None)).item()

    target = y[:, 1:].transpose(1, 2).reshape(2, 6, 3, 2).numpy()
    views = [
        projected(p, x.numpy()).transpose(0, 2, 1).reshape(2, 6, 3, 2)  # type: ignore[arg-type]
        for p in loss.comparisons["1"].projectors  # type: ignore[union-attr]
    ]
    expected = 0.08 * np.square(unit(views[0]) - unit(target)).sum() / 2
    expected += 0.06 * np.square(unit(high(views[1])) - unit(high(target))).sum() / 2
    assert found == pytest.approx(expected, rel=1e-9)


def test_only_the_authors_stage_has_the_second_view() -> None:
    loss = ScaleKDLoss()
    set_up(loss, ModelInfo([STUDENT] * 4, 3), ModelInfo([TEACHER] * 4, 6), {"num_classes": 5})
    assert {n: len(views.projectors) for n, views in loss.comparisons.items()} == {"3": 2, "4": 1}  # type: ignore[arg-type]


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_hcd_is_its_formula() -> None:
    torch.manual_seed(0)
    loss = HCDLoss(k=3, temperature=2.0, threshold=0.1)
    specs = [StageSpec("NCHW", c, (8 // 2**i, 8 // 2**i)) for i, c in enumerate((3, 4, 5, 6))]
    set_up(loss, ModelInfo(specs, 6), ModelInfo([], 7), {"num_classes": 5})
    loss.double()
    stages = {i: random(i, *spec.sizes(4)) for i, spec in enumerate(specs, 1)}
    z_s, z_t, f_t = random(10, 4, 5), random(11, 4, 5), random(12, 4, 7)
    labels = torch.tensor([0, 3, 1, 3])
    found = loss(Knowledge(z_s, z_s, stages), Knowledge(f_t, z_t), Batch(labels)).item()

    expected = 0.0
    for n, mapper in loss.mappers.items():
        f = loss.projectors[n](stages[int(n)]).detach().numpy()
        assert f.shape == (4, 7)
        for image, label in enumerate(labels.tolist()):
            both = np.concatenate([f[image], f_t[image].numpy()])
            sub = linear(mapper[2], np.maximum(linear(mapper[0], both), 0)).reshape(3, 5)  # type: ignore[index]
            for z in sub + z_t[image].numpy():
                expected -= log_softmax(z)[label] / 3 / 4
                log_a, log_s = log_softmax(z / 2), log_softmax(z_s[image].numpy() / 2)
                expected += 6 * 4 * (np.exp(log_a) * (log_a - log_s)).sum() / 3 / 4
            rest = np.delete(sub, label, axis=1)
            for a, b in itertools.permutations(range(3), 2):
                cosine = rest[a] @ rest[b] / np.linalg.norm(rest[a]) / np.linalg.norm(rest[b])
                expected += max(cosine - 0.1, 0) ** 2 / 6 / 4
    assert found == pytest.approx(expected, rel=1e-9)


def test_hcds_mapper_learns_from_the_divergence_too() -> None:
    """What the student learns from is not held constant."""
    torch.manual_seed(0)
    loss = HCDLoss(stages=(1,), orthogonality_weight=0.0)
    set_up(loss, ModelInfo([STUDENT], 3), ModelInfo([], 6), {"num_classes": 5})
    student, teacher = random(0, 4, 3).float(), random(1, 4, 6).float()
    known = Knowledge(student, random(2, 4, 5).float(), {1: random(3, 4, 3, 4, 5).float()})
    gradients = []
    for weight in (0.0, 6.0):
        loss.kl_weight = weight
        loss.zero_grad()
        loss(known, Knowledge(teacher, random(4, 4, 5).float()), Batch(torch.arange(4))).backward()
        gradients.append(loss.mappers["1"][2].weight.grad.clone())  # type: ignore[index, union-attr]
    assert not torch.allclose(*gradients)
