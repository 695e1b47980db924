"""Seeds: derived ones never change, and seeded code disturbs nobody's random numbers."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from fbt_plugins.data import FashionMNISTMini, derive_seed, seeded


def numbers() -> list[float]:
    return [torch.rand(1).item(), random.random(), np.random.rand()]


def test_seeded_starts_all_three_generators() -> None:
    with seeded(7):
        first = numbers()
    with seeded(7):
        assert numbers() == first
    with seeded(2**64 - 1):
        assert all(a != b for a, b in zip(numbers(), first, strict=True))


def test_derived_seeds_never_change() -> None:
    assert derive_seed(0, 0, 0) == 11684132067157788011
    assert derive_seed(1, 0) != derive_seed(0, 1) != derive_seed(0, 1, 0)
    assert derive_seed(np.int64(3), torch.tensor(4)) == derive_seed(3, 4)
    assert len({derive_seed(s, e, i) for s in range(5) for e in range(5) for i in range(40)}) == 1000


TIMM = [{"type": "timm", "input_size": 28, "is_training": True, "auto_augment": "rand-m9-mstd0.5", "re_prob": 0.5}]


def test_random_numbers_of_the_process_go_on_undisturbed() -> None:
    def draw(between: object) -> list[float]:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        first = numbers()
        if between == "samples":
            FashionMNISTMini("val", TIMM)[3]
        elif between == "error":
            with pytest.raises(ZeroDivisionError), seeded(1):
                numbers()
                raise ZeroDivisionError
        return first + numbers()

    assert draw(None) == draw("samples") == draw("error")
