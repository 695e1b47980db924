"""The order of the images: a function of (seed, epoch) that any position can be taken up from."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sized
from typing import Any

import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_dist_info
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import Sampler

from ..errors import FBTError
from ..randomness import derive_seed


@DATA_SAMPLERS.register_module()
class SeededSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index), so that a data set can make its augmentation a function of both.

    With several processes, each takes every world-size-th sample of the common order, which is what mmengine's
    ``collect_results`` expects when it puts results together and trims the padding.

    Args:
        dataset: only its length is used.
        shuffle: whether each epoch has an order of its own; otherwise 0, 1, 2, ...
        seed: the same in all processes; None (which mmengine passes with ``diff_rank_seed``) means 0.
        round_up: whether to repeat the first samples so that all processes have equally many.
    """

    def __init__(self, dataset: Sized, shuffle: bool = True, seed: int | None = 0, round_up: bool = True) -> None:
        self.rank, self.world_size = get_dist_info()
        self.size = len(dataset)
        self.shuffle = shuffle
        self.seed = seed or 0
        self.round_up = round_up
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        """How many samples of a whole epoch are this process's, wherever `seek` has gone."""
        if self.round_up:
            return math.ceil(self.size / self.world_size)
        return len(range(self.rank, self.size, self.world_size))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, order = self.epoch, self._order()
        for position in range(self.rank + self.start * self.world_size, self._padded(), self.world_size):
            yield epoch, order[position % self.size]

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is the whole of this epoch. mmengine's DistSamplerSeedHook calls it before each."""
        self.epoch = epoch
        self.start = 0

    def seek(self, samples: int) -> None:
        """Iterations of the current epoch leave out this process's first ``samples``, until the next `set_epoch`.

        Raises:
            FBTError: if the epoch has fewer.
        """
        if not 0 <= samples <= len(self):
            raise FBTError(
                f"cannot go on at sample {samples} of {len(self)}: did the data set or the number of processes change?"
            )
        self.start = samples

    def _padded(self) -> int:
        return len(self) * self.world_size if self.round_up else self.size

    def _order(self) -> list[int]:
        if not self.shuffle:
            return list(range(self.size))
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        return torch.randperm(self.size, generator=generator).tolist()


class EpochSampler(Sampler[tuple[int, int]]):
    """Any other sampler of positions, whose positions come as (epoch, position), as those of `SeededSampler` do.

    So every epoch shows the images in other views, whoever decides on their order. A sampler that never ends
    (mmengine's InfiniteSampler) begins another epoch after each ``len(sampler)`` positions.

    Args:
        dataset: which yields plain positions to data sets that take no epochs (``dataset.takes_epochs``).
        sampler: config of the other sampler.
        seed: passed to it.
    """

    def __init__(self, dataset: Sized, sampler: Mapping[str, Any], seed: int | None = 0) -> None:
        self.sampler: Any = DATA_SAMPLERS.build(dict(sampler), default_args=dict(dataset=dataset, seed=seed))
        self.name = type(self.sampler).__name__
        self.takes_epochs = getattr(dataset, "takes_epochs", False)
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        for number, position in enumerate(itertools.islice(self.sampler, self.start, None), self.start):
            plain = self.takes_epochs and not isinstance(position, tuple)  # a relative of SeededSampler yields pairs
            yield (self.epoch + number // len(self), position) if plain else position

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is the whole of this epoch.

        Raises:
            FBTError: if that is not the first and the other sampler never ends: its order cannot be taken up.
        """
        if epoch and isinstance(self.sampler, InfiniteSampler):
            raise FBTError(self._lost)
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)
        self.epoch = epoch
        self.start = 0

    def seek(self, samples: int) -> None:
        """The next iteration leaves out the first ``samples``.

        Raises:
            FBTError: if the other sampler's order is not a function of the epoch.
        """
        if isinstance(self.sampler, InfiniteSampler) or not hasattr(self.sampler, "set_epoch"):
            raise FBTError(self._lost)
        self.start = samples

    @property
    def _lost(self) -> str:
        return f"--resume: {self.name} cannot go on with the order of an earlier run; use SeededSampler"
