"""Image files: which ones a folder holds, and their pixels as RGB with 8 bits, whatever they are stored as."""

from __future__ import annotations

import functools
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.features
import PIL.Image
import PIL.ImageOps

from ..errors import FBTError, one_line

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".ppm", ".pgm", ".pbm", ".pnm", ".bmp", ".dib", ".gif"),
    *(".tif", ".tiff", ".webp", ".avif", ".jp2", ".j2k", ".jpx", ".tga", ".ico", ".pcx", ".qoi"),
)
"""What Pillow reads and people keep photographs in, with the parts of it that an installation may lack."""
_OPTIONAL = {".webp": "webp", ".avif": "avif", ".jp2": "jpg_2000", ".j2k": "jpg_2000", ".jpx": "jpg_2000"}

ORIENTATION = 274
"""EXIF's number for it."""

_NO_CLASSES = ("__MACOSX", "@eaDir")
"""Folders that systems put beside one's own; those that begin with a dot are no classes either."""


class Listing(NamedTuple):
    """The images below one folder.

    Attributes:
        paths: of the files with an extension that Pillow reads here, in alphabetical order.
        left_out: how many others there are, by extension.
        example: one of those, empty where there is none.
    """

    paths: list[str]
    left_out: Counter[str]
    example: str


def hidden(name: str) -> bool:
    """Whether a file or folder is a system's and no user's: ``.DS_Store``, ``._x.jpg``, ``.ipynb_checkpoints``."""
    return name.startswith(".") or name in _NO_CLASSES


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in a folder that are classes, in alphabetical order.

    Raises:
        FBTError: if there is none.
    """
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not hidden(entry.name))
    if not names:
        raise FBTError(f"ImageFolder: {folder} has no class folder: images are expected as {folder}/CLASS/NAME.jpg")
    return names


def list_images(folder: Path) -> Listing:
    """The images in a folder and in those below it; links are followed."""
    paths, left_out, example = [], Counter[str](), ""
    readable = _readable()
    for place, name in _files(folder):
        if not hidden(name) and name.lower().endswith(readable):
            paths.append(f"{place}{os.sep}{name}")
        else:
            left_out["hidden" if hidden(name) else Path(name).suffix.lower() or "without extension"] += 1
            example = example or f"{place}{os.sep}{name}"
    return Listing(paths, left_out, example)


def _files(folder: Path) -> Iterator[tuple[str, str]]:
    for place, _, names in sorted(os.walk(folder, followlinks=True)):
        if not any(map(hidden, Path(place).relative_to(folder).parts)):
            yield from ((place, name) for name in sorted(names))


@functools.cache
def _readable() -> tuple[str, ...]:
    return tuple(e for e in EXTENSIONS if e not in _OPTIONAL or PIL.features.check(_OPTIONAL[e]))


def read_image(path: str | Path) -> PIL.Image.Image:
    """The first frame of a file in RGB, upright as its EXIF orientation says.

    Transparency is dropped. Pixels of 16 bits are divided by 257, so that 65535 becomes 255; floating-point pixels are
    from 0 to 1 and are multiplied by 255.

    Raises:
        FBTError: which file is no readable image, is too large for Pillow (about 179 million pixels), or has other
            pixels than these.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(path) as image:
                return _eight_bits(PIL.ImageOps.exif_transpose(image), path).convert("RGB")
    except PIL.Image.DecompressionBombError as error:
        raise FBTError(f"{path} is too large an image ({one_line(error)}): make it smaller, or remove it") from error
    except (OSError, SyntaxError, ValueError, MemoryError) as error:  # Pillow raises any of them for damaged files
        raise FBTError(f"{path} is no readable image ({one_line(error)})") from error


def upright_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of an image as :func:`read_image` gives it, from its header alone.

    Raises:
        OSError: if it is no image.
    """
    with PIL.Image.open(path) as image:
        turned = image.getexif().get(ORIENTATION, 1) >= 5  # from there on rows are columns
        return (image.width, image.height) if turned else (image.height, image.width)


def _eight_bits(image: PIL.Image.Image, path: str | Path) -> PIL.Image.Image:
    if image.mode.startswith("I"):
        pixels = np.asarray(image).astype(np.int64)
        low, high = int(pixels.min()), int(pixels.max())
        if low < 0 or high > 65535:
            raise FBTError(f"{path}: pixels from {low} to {high}; expected 0 to 65535: save it with 8 or 16 bits")
        return PIL.Image.fromarray(((pixels + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 1):  # NaN is neither
            found = f"{values.min():g} to {values.max():g}"
            raise FBTError(f"{path}: floating-point pixels from {found}; expected 0 to 1: save it with 8 bits")
        return PIL.Image.fromarray((values * 255).round().astype(np.uint8))
    return image
