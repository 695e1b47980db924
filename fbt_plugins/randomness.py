"""Randomness as a function of numbers such as (seed, epoch, index): no state to save, carry or lose."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.random.mtrand import get_bit_generator, set_bit_generator

_NUMPY = np.random.MT19937(0)  # lent to numpy.random inside `seeded`; saving and restoring its own costs 70 us


def derive_seed(*numbers: int) -> int:
    """A 64-bit seed that depends on nothing but ``numbers`` and their order, the same on every machine and version."""
    text = " ".join(str(int(number)) for number in numbers)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's CPU generator, ``random`` and ``numpy.random`` start from ``seed``; afterwards they go on as before.

    About 30 us in all: CUDA is left alone (``torch.manual_seed`` is not used), and numpy is lent another generator.
    Only the second number of a pair that ``numpy.random.randn`` had kept is lost.

    Args:
        seed: 0 to 2**64 - 1.
    """
    torch_state = torch.default_generator.get_state()
    python_state = random.getstate()
    numpy_own = get_bit_generator()
    try:
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        set_bit_generator(_NUMPY)
        np.random.seed(seed % 2**32)
        yield
    finally:
        torch.default_generator.set_state(torch_state)
        random.setstate(python_state)
        set_bit_generator(numpy_own)


def stratified_order(labels: Sequence[int], seed: int = 0) -> list[int]:
    """An order of all positions in which every beginning has the classes in their overall proportions.

    A function of its arguments only (hashing, no generator): the same with any version of any library.

    Args:
        labels: class number of each position.
        seed: another seed, another order.

    Returns:
        A permutation of ``range(len(labels))``. Where all classes are equally frequent, its first k * C positions hold
        k of each of the C classes.
    """
    shuffled = sorted(range(len(labels)), key=lambda position: derive_seed(seed, position))
    sizes: dict[int, int] = {}
    ranks: dict[int, int] = {}
    for position in shuffled:
        ranks[position] = sizes.get(labels[position], 0)
        sizes[labels[position]] = ranks[position] + 1
    return sorted(shuffled, key=lambda position: (ranks[position] + 0.5) / sizes[labels[position]])
