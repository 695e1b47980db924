"""Batches of a data set that is held in memory, augmented all at once on the training device."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from ..errors import ConfigError
from ..randomness import derive_seed
from .image_dataset import InMemoryDataset, TransformConfigs
from .transforms import build_transforms

ALIKE = (v2.Pad, v2.Resize, v2.CenterCrop, v2.Grayscale, v2.ToDtype)
"""Transforms that do the same to every image, and therefore take a batch as it is."""

_GOLDEN, _FIRST, _SECOND = (n - 2**64 for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


class Draws:
    """Random numbers of a batch: a function of a key and of each image's own (view, position), on their device.

    Args:
        key: a 64-bit seed.
        views, positions: (N,) integers.
    """

    def __init__(self, key: int, views: Tensor, positions: Tensor) -> None:
        key = key - 2**64 if key >= 2**63 else key
        self._state = _mixed(_mixed(positions * _GOLDEN + key) + views * _GOLDEN)
        self._drawn = 0

    def uniform(self, count: int) -> Tensor:
        """(N, count) of float64 in [0, 1), other ones at each call."""
        steps = torch.arange(self._drawn + 1, self._drawn + count + 1, device=self._state.device)
        self._drawn += count
        numbers = _mixed(self._state[:, None] + steps * _GOLDEN)
        return (numbers >> 11 & (1 << 53) - 1).double() * 2.0**-53


def _mixed(x: Tensor) -> Tensor:
    """The output function of SplitMix64 (Steele et al., OOPSLA 2014); int64 multiplies modulo 2**64 as it must."""
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * _FIRST
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * _SECOND
    return x ^ (x >> 31 & (1 << 33) - 1)


def _crop(t: v2.RandomCrop, images: Tensor, draws: Draws) -> Tensor:
    if t.padding is not None:
        left, right, top, bottom = t.padding
        images = functional.pad(images, [left, top, right, bottom], fill=t.fill, padding_mode=t.padding_mode)
    (height, width), (h, w) = images.shape[2:], t.size
    if height < h or width < w:
        raise ConfigError(f"RandomCrop to {h}x{w}: the padded images have {height}x{width} pixels only")
    top, left = draws.uniform(2).split(1, 1)
    rows = (top * (height - h + 1)).long() + torch.arange(h, device=images.device)
    columns = (left * (width - w + 1)).long() + torch.arange(w, device=images.device)
    images = images.gather(2, rows[:, None, :, None].expand(-1, images.shape[1], -1, width))
    return images.gather(3, columns[:, None, None, :].expand(-1, images.shape[1], h, -1))


def _flip(t: v2.RandomHorizontalFlip | v2.RandomVerticalFlip, images: Tensor, draws: Draws) -> Tensor:
    axis = 3 if isinstance(t, v2.RandomHorizontalFlip) else 2
    return torch.where((draws.uniform(1) < t.p)[:, :, None, None], images.flip(axis), images)


def _erase(t: v2.RandomErasing, images: Tensor, draws: Draws) -> Tensor:
    """As torchvision: of ten rectangles the first that is smaller than the image, none where all are too large."""
    height, width = images.shape[2:]
    low, high = math.log(t.ratio[0]), math.log(t.ratio[1])
    area = height * width * (t.scale[0] + (t.scale[1] - t.scale[0]) * draws.uniform(10))
    ratio = torch.exp(low + (high - low) * draws.uniform(10))
    h, w = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (h < height) & (w < width)
    first = fits.int().argmax(1, keepdim=True)
    h, w = h.gather(1, first), w.gather(1, first)
    top, left = draws.uniform(2).split(1, 1)
    top, left = (top * (height - h + 1)).floor(), (left * (width - w + 1)).floor()
    rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    inside = ((rows >= top) & (rows < top + h))[:, :, None] & ((columns >= left) & (columns < left + w))[:, None, :]
    chosen = (draws.uniform(1) < t.p) & fits.any(1, keepdim=True)
    value = _constant(tuple(t.value), images.dtype, images.device)[:, None, None]
    return torch.where((inside & chosen[:, :, None])[:, None], value, images)


@functools.cache
def _constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Made once: bringing numbers to a GPU waits for it."""
    return torch.tensor(values, device=device).to(dtype)


_BATCHED: dict[type, Callable[[Any, Tensor, Draws], Tensor]] = {
    v2.RandomCrop: _crop,
    v2.RandomHorizontalFlip: _flip,
    v2.RandomVerticalFlip: _flip,
    v2.RandomErasing: _erase,
}


def batched_transforms(configs: TransformConfigs, where: str) -> list[v2.Transform]:
    """Transforms that a whole batch can be given, each image with random numbers of its own.

    Args:
        configs: as `build_transforms` takes them.
        where: what error lines begin with.

    Raises:
        ConfigError: for those that cannot be batched, and whatever else is wrong.
    """
    steps = build_transforms(configs, where).transforms[: len(configs)]
    known = ", ".join(kind.__name__ for kind in (*_BATCHED, *ALIKE))
    problems = []
    for number, step in enumerate(steps):
        reason = ""
        if type(step) not in (*_BATCHED, *ALIKE):
            reason = f"in_memory=True augments whole batches, which {configs[number]['type']} cannot; known: {known}"
        elif isinstance(step, v2.RandomCrop) and step.pad_if_needed:
            reason = "in_memory=True pads by padding=N, not by pad_if_needed"
        if reason:
            problems.append(f"{where}[{number}]: {reason}; or set in_memory=False")
    if problems:
        raise ConfigError(problems)
    return steps


class InMemoryLoader:
    """What a DataLoader is for data sets that fit into the device's memory: no workers, no sample by itself.

    A batch is cut out of one tensor and augmented at once; the random numbers of an image are a function of (seed,
    epoch, position) and of nothing else, as they are in ``ImageDataset``, and have the same distribution, but they are
    not the same numbers.

    Args:
        dataset: an `InMemoryDataset`, or mmengine's slice of one.
        sampler: yields (epoch, position).
        batch_size: images in a batch.
        drop_last: whether a last, smaller batch is left out.
        device: where images are kept and augmented.

    Raises:
        ConfigError: if the data set is another's, or has transforms that no batch can be given.
    """

    num_workers = 0

    def __init__(
        self, dataset: Any, sampler: Any, batch_size: int, drop_last: bool = False, device: torch.device | str = "cpu"
    ) -> None:
        if not hasattr(dataset, "images"):
            raise ConfigError(f"in_memory=True: {type(dataset).__name__} is not held in memory; set in_memory=False")
        self.dataset: InMemoryDataset = dataset
        self.sampler: Iterable[tuple[int, int]] = sampler
        self.batch_size, self.drop_last = batch_size, drop_last
        self.device = torch.device(device)
        self._steps = batched_transforms(dataset.transforms, f"{dataset.metainfo['name']}.transforms")
        images = dataset.images if dataset.images.ndim == 4 else dataset.images.unsqueeze(1)
        self._images = images.to(self.device)
        self._labels = torch.tensor(dataset.labels, device=self.device)

    def __len__(self) -> int:
        assert isinstance(self.sampler, Sized)
        batches = len(self.sampler) / self.batch_size
        return math.floor(batches) if self.drop_last else math.ceil(batches)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        samples = iter(self.sampler)
        while keys := list(itertools.islice(samples, self.batch_size)):
            if len(keys) == self.batch_size or not self.drop_last:
                yield self._batch(keys)

    def _batch(self, keys: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        where = torch.tensor([(self.dataset.view(epoch), position) for epoch, position in keys])
        if self.device.type == "cuda":
            where = where.pin_memory()  # so that nobody waits for the copy
        views, positions = where.to(self.device, non_blocking=True).unbind(1)
        images = self._images[positions].expand(-1, 3, -1, -1)
        for number, step in enumerate(self._steps):
            if batched := _BATCHED.get(type(step)):
                images = batched(step, images, Draws(derive_seed(self.dataset.seed, number), views, positions))
            else:
                images = step(images)
        batch = {"inputs": images, "labels": self._labels[positions], "index": positions}
        return batch if self.dataset.views is None else {**batch, "view": views}
