"""Data sets whose images are decoded when they are asked for, and may turn out to be none."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from ..errors import ConfigError, FBTError, nearest
from .image_dataset import ImageDataset, TransformConfigs
from .image_files import UnreadableImageError, printable, read_image

SKIP, STOP = "skip", "stop"


class DecodedDataset(ImageDataset):
    """Images that are decoded when they are asked for.

    With ``on_error="skip"`` the next image that can be read, with its own label, index and augmentation, is shown in
    the place of one that cannot. So what a position shows is a function of the images alone, whoever asks for it and
    whenever: a run that goes on shows the same ones. `unreadable` says which they were, in whatever worker process.

    Args:
        on_error: ``"skip"``, or ``"stop"``, which ends the run where an image cannot be read.
        classes, labels, transforms, seed: see `ImageDataset`.
    """

    def __init__(
        self, classes: Sequence[str], labels: Sequence[int], transforms: TransformConfigs, seed: int, on_error: str
    ) -> None:
        self.on_error = on_error
        self._failed = torch.zeros(len(labels), dtype=torch.uint8).share_memory_()
        super().__init__(classes, labels, transforms, seed)

    @property
    def failed(self) -> torch.Tensor:
        """(N,) uint8, 1 where an image could not be read so far; memory that worker processes share."""
        return self._failed

    def name_of(self, position: int) -> str:
        """What messages call an image."""
        raise NotImplementedError

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, position = key if isinstance(key, tuple) else (0, key)
        position = range(len(self))[position]
        for step in range(len(self)):
            shown = (position + step) % len(self)
            try:
                return super().__getitem__((epoch, shown))
            except UnreadableImageError:
                if self.on_error == STOP:
                    raise
                self._failed[shown] = 1
        raise FBTError(f"{type(self).__name__}: none of its {len(self):,} images can be read")


class FileDataset(DecodedDataset):
    """Images in files of their own.

    Args:
        folder: that all of them are below.
        paths: of the files.
        classes, labels, transforms, seed, on_error: see `DecodedDataset`.
    """

    def __init__(
        self,
        folder: Path,
        paths: Sequence[str],
        classes: Sequence[str],
        labels: Sequence[int],
        transforms: TransformConfigs,
        seed: int,
        on_error: str,
    ) -> None:
        self.folder, self.paths = folder, list(paths)
        super().__init__(classes, labels, transforms, seed, on_error)

    def name_of(self, position: int) -> str:
        return printable(self.paths[position])

    def content(self) -> Iterable[bytes]:
        """Names and sizes of the files: reading all of them would take hours."""
        for path in map(Path, self.paths):
            yield os.fsencode(f"{path.relative_to(self.folder).as_posix()} {path.stat().st_size}\n")

    def glance(self) -> Iterable[bytes]:
        """Names of the files, and sizes of a thousand of them: to ask for all takes minutes in a network's folder."""
        step = -(-len(self.paths) // 1000)
        for position, path in enumerate(map(Path, self.paths)):
            size = path.stat().st_size if position % step == 0 else ""
            yield os.fsencode(f"{path.relative_to(self.folder).as_posix()} {size}\n")

    def image(self, position: int) -> Image:
        return read_image(self.paths[position])


def check_on_error(kind: str, on_error: str) -> None:
    """Refuses what is neither "skip" nor "stop".

    Raises:
        ConfigError: naming what was meant.
    """
    if on_error not in (SKIP, STOP):
        raise ConfigError(
            f"{kind}: on_error is 'skip' or 'stop', not {on_error!r}{nearest(str(on_error), [SKIP, STOP])}"
        )
