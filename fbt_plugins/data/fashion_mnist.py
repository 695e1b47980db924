"""Fashion-MNIST on disk: its original files, and the part of it that is embedded in this package."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import FBTError, one_line

EMBEDDED = "fashion_mnist_mini.npz"
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
SIZES = {"train": 60_000, "test": 10_000}


class Images(NamedTuple):
    """Grey images with labels.

    Attributes:
        images: (N, 28, 28) uint8.
        labels: (N,) int64, 0 to 9.
        indices: (N,) int64, the position of each in its original split (training or test).
    """

    images: Tensor
    labels: Tensor
    indices: Tensor


def read_embedded(split: str) -> Images:
    """The embedded ``"train"`` (5,000 images), ``"val"`` (1,000, of the same original split) or ``"test"`` (2,000)."""
    path = resources.files(__package__) / "embedded" / EMBEDDED
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        images, labels, indices = (torch.from_numpy(arrays[f"{split}_{name}"]) for name in Images._fields)
    return Images(images, labels.long(), indices.long())


def original_folders(root: str | Path) -> tuple[Path, Path]:
    """Where the original files may lie: where torchvision's download puts them, or ``root`` itself."""
    root = Path(root).expanduser().resolve()
    return root / "FashionMNIST" / "raw", root


def has_original(root: str | Path, split: str) -> bool:
    """Whether one of those folders holds both files, images and labels, of ``"train"`` or ``"test"``."""
    return any(all(_path(folder, name) for name in FILES[split]) for folder in original_folders(root))


def read_original(root: str | Path, split: str) -> Images:
    """All images of the original ``"train"`` (60,000) or ``"test"`` (10,000) files, gzipped or not.

    Raises:
        FBTError: which files are missing from which folders; or which file is damaged or of another size.
    """
    folders = original_folders(root)
    for folder in folders:
        images, labels = (_path(folder, name) for name in FILES[split])
        if images and labels:
            count = SIZES[split]
            return Images(_read_idx(images, (count, 28, 28)), _read_idx(labels, (count,)).long(), torch.arange(count))
    raise FBTError(missing_original(root, split))


def missing_original(root: str | Path, split: str) -> str:
    """Which files of ``"train"`` or ``"test"`` are in none of those folders, on one line; else empty."""
    folders, names = original_folders(root), " and ".join(f"{name}.gz" for name in FILES[split])
    return "" if has_original(root, split) else f"Fashion-MNIST: no {names} in {folders[0]} or {folders[1]}"


def _path(folder: Path, name: str) -> Path | None:
    """The gzipped file where there is one: it carries a checksum."""
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def _read_idx(path: Path, shape: tuple[int, ...]) -> Tensor:
    """A file in MNIST's idx format that must hold unsigned bytes of exactly this shape."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise FBTError(f"{path} is damaged or unreadable ({one_line(error)}): delete it and get it again") from error
    header = struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape)  # 8: unsigned bytes
    if not data.startswith(header) or len(data) != len(header) + math.prod(shape):
        expected = "x".join(map(str, shape))
        raise FBTError(f"{path} is truncated or no idx file of {expected} bytes: delete it and get it again")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=len(header)).view(shape)
