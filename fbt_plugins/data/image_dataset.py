"""What all data sets have in common: samples, keys, and augmentation without state."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import ConfigError, FBTError, one_line
from ..randomness import derive_seed, seeded, stratified_order
from .transforms import build_transforms

TransformConfigs = Sequence[Mapping[str, Any]]

NO_LABEL = -1
"""The label of an image that has none."""


class ImageDataset(Dataset[dict[str, Any]]):
    """Images, most with labels, whose augmentation is a function of (seed, epoch, index) and of nothing else.

    A sample is ``dict(inputs, labels, index)``: a tensor (3, H, W), uint8 unless a transform makes it floating point;
    the class number, -1 where the image has no label; and the position in this data set. Its key is that position, or a
    pair (epoch, position), which is what `SeededSampler` yields; epoch is 0 otherwise. Workers need no seeds, and the
    random numbers of the process itself go on undisturbed.

    Args:
        classes: name of each class; none where no image has a label.
        labels: class number of each image, -1 where it has none.
        transforms: what is done with each image when it is read; see `build_transforms`.
        seed: of the augmentation.

    Attributes:
        metainfo: ``{"name": ..., "classes": (...)}``.
        image_size: (height, width) of the first image after the transforms.
        transforms: their configs.
        views: how many views of each image there are; epoch n then shows view n modulo views, and samples carry their
            ``view``. None (which is how it begins) gives every epoch one of its own.
        takes_epochs: that samples may be asked for by (epoch, position).
        known_classes, known_size: classes and (height, width) of the stored images, for data sets that are always the
            same; empty and None for others.
        known_lengths: images of the stored splits of such data sets, before any are held out.

    Raises:
        ConfigError: if the transforms are wrong, fail on the first image, or yield anything but such a tensor.
    """

    takes_epochs: ClassVar[bool] = True
    known_classes: ClassVar[Sequence[str]] = ()
    known_size: ClassVar[tuple[int, int] | None] = None
    known_lengths: ClassVar[Mapping[str, int]] = {}

    def __init__(self, classes: Sequence[str], labels: Sequence[int], transforms: TransformConfigs, seed: int) -> None:
        self.classes = tuple(classes)
        self.labels = labels
        self.seed = seed
        self.transforms = transforms
        self.views: int | None = None
        self.metainfo = {"name": type(self).__name__, "classes": self.classes}
        where = f"{type(self).__name__}.transforms"
        self._transform = build_transforms(transforms, where)
        self._augments = len(transforms) > 0
        try:
            first = self[0]["inputs"]
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"{where} fail on the first image: {one_line(error)}") from error
        if first.ndim != 3 or len(first) != 3 or not (first.dtype == torch.uint8 or first.is_floating_point()):
            found = f"{first.dtype} {tuple(first.shape)}"
            raise ConfigError(f"{where} turn an image into {found}; expected (3, H, W), uint8 or floating point")
        self.image_size = (first.shape[1], first.shape[2])

    @property
    def num_labelled(self) -> int:
        """How many images have a label."""
        return sum(label != NO_LABEL for label in self.labels)

    @classmethod
    def describe(cls, transforms: TransformConfigs, **options: Any) -> tuple[int | None, tuple[int, int] | None]:
        """Number of classes, and (height, width) after the transforms, read off the class, its options and the disk.

        No image is decoded. None stands for what only the data can tell, or a disk that has them; images without any
        label have 0 classes.

        Args:
            transforms: as in a config.
            options: the data set's other arguments.

        Raises:
            ConfigError: if the transforms are wrong, or fail on images of the size that is stored.
        """
        transform = build_transforms(transforms, f"{cls.__name__}.transforms")
        stored = cls.stored_size(**options)
        try:
            size = fixed_size(transform, [stored] if stored else _ANY_SIZES)
        except (TypeError, ValueError, RuntimeError) as error:
            if stored is not None:
                what = f"images of {stored[0]}x{stored[1]} pixels: {one_line(error)}"
                raise ConfigError(f"{cls.__name__}.transforms fail on {what}") from error
            size = None
        return len(cls.known_classes) or None, size

    @classmethod
    def stored_size(cls, **options: Any) -> tuple[int, int] | None:
        """(height, width) that all stored images have, or the first one; None where that cannot be told quickly."""
        return cls.known_size

    @classmethod
    def missing(cls, **options: Any) -> str:
        """What of the data is not on this machine, as far as that can be told at once; empty where nothing is known of.

        Args:
            options: the data set's arguments, but for transforms.
        """
        return ""

    @classmethod
    def known_length(cls, split: str, validation: int = 0) -> int | None:
        """How many images a split has, without any data; None where only data can tell.

        Args:
            split: as the data set takes it.
            validation: how many are held out.
        """
        stored = cls.known_lengths.get(split)
        if stored is None:
            return None
        return stored - validation if split == "train" else stored or validation

    def image(self, position: int) -> Tensor | Image:
        """The image before any transform: a uint8 tensor (3, H, W) that may be changed, or a PIL image in RGB."""
        raise NotImplementedError

    def content(self) -> Iterable[bytes]:
        """What tells the stored images from others, for `fingerprint`."""
        raise FBTError(f"{type(self).__name__} cannot tell its images from others: it has no content() to fingerprint")

    def glance(self) -> Iterable[bytes]:
        """The same at little cost, where `content` would take long; by default that itself."""
        return self.content()

    def fingerprint(self, thorough: bool = True) -> str:
        """sha256 of the class's name, classes, labels and stored images; transforms and seed play no part.

        Args:
            thorough: whether of the images' `content`, or only of what a `glance` shows of them.
        """
        digest = hashlib.sha256(repr((type(self).__name__, self.classes, list(self.labels))).encode())
        for part in self.content() if thorough else self.glance():
            digest.update(part)
        return digest.hexdigest()

    def fix_views(self, views: int, seed: int) -> None:
        """From now on each image has this many views, drawn from ``seed``; workers started before do not know."""
        self.views, self.seed = views, seed

    def view(self, epoch: int) -> int:
        """Which view of its images an epoch shows."""
        return epoch if self.views is None else epoch % self.views

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, position = key if isinstance(key, tuple) else (0, key)
        view = self.view(epoch)
        position = range(len(self))[position]  # IndexError beyond the end; -1 gets the seed of the last
        sample = {"inputs": self.shown(view, position), "labels": self.labels[position], "index": position}
        return sample if self.views is None else {**sample, "view": view}

    def shown(self, view: int, position: int) -> Tensor:
        """A view of an image: what it is after the transforms, a tensor (3, H, W) that may be changed."""
        image = self.image(position)
        if not self._augments:
            return self._transform(image)
        with seeded(derive_seed(self.seed, view, position)):
            return self._transform(image)


_ANY_SIZES = ((1201, 809), (907, 1103))
"""(height, width) of images that stand for all: tall and wide ones, and larger than what models take."""


def fixed_size(transform: Callable[[Tensor], Tensor], sizes: Iterable[tuple[int, int]]) -> tuple[int, int] | None:
    """(height, width) that a transform gives images of all these sizes; None where it is not one."""
    with seeded(0):
        found = {transform(torch.zeros(3, *size, dtype=torch.uint8)).shape[1:] for size in sizes}
    height, width = next(iter(found)) if len(found) == 1 else (0, 0)
    return (height, width) if height else None


_MOST_KEPT = 256 * 2**20
"""Bytes of fixed views that an `InMemoryDataset` keeps at most."""


class InMemoryDataset(ImageDataset):
    """Images held as one uint8 tensor. Fixed views are kept too, where all of them take 256 MiB at most.

    Args:
        images: (N, H, W) grey or (N, 3, H, W).
        labels: (N,).
        labelled: how many images keep their label, always the same ones, in equal parts of all classes; the others are
            shown without. With 0 there are no classes either. None: all.
        classes, transforms, seed: see `ImageDataset`.

    Raises:
        ConfigError: if there are not so many.
    """

    def __init__(
        self,
        classes: Sequence[str],
        images: Tensor,
        labels: Tensor,
        transforms: TransformConfigs,
        seed: int,
        labelled: int | None = None,
    ) -> None:
        self.images = images
        numbers = labels.tolist()
        if labelled is not None:
            if type(labelled) is not int or not 0 <= labelled <= len(numbers):
                raise ConfigError(f"{type(self).__name__}: labelled is 0 to {len(numbers)} here, not {labelled!r}")
            kept = set(stratified_order(numbers)[:labelled])
            numbers = [label if position in kept else NO_LABEL for position, label in enumerate(numbers)]
        self._kept: dict[tuple[int, int], Tensor] = {}
        super().__init__(classes if labelled != 0 else (), numbers, transforms, seed)

    @classmethod
    def describe(
        cls, transforms: TransformConfigs, labelled: int | None = None, **options: Any
    ) -> tuple[int | None, tuple[int, int] | None]:
        classes, size = super().describe(transforms, **options)
        return 0 if labelled == 0 else classes, size

    def content(self) -> Iterable[bytes]:
        yield repr(self.images.shape).encode()
        yield self.images.contiguous().numpy().tobytes()

    def image(self, position: int) -> Tensor:
        return self.images[position].expand(3, -1, -1).clone()

    def fix_views(self, views: int, seed: int) -> None:
        super().fix_views(views, seed)
        self._kept = {}

    def shown(self, view: int, position: int) -> Tensor:
        if self.views is None:
            return super().shown(view, position)
        image = self._kept.get((view, position))
        if image is None:
            image = super().shown(view, position)
            if image.nbytes * self.views * len(self) <= _MOST_KEPT:
                self._kept[view, position] = image.clone()  # a crop alone holds all of what it was cut from
            return image
        return image.clone()  # whoever takes it may change it

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}  # a worker that is sent so many tensors runs out of file descriptors
