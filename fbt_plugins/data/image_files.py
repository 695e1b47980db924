"""Image files: which ones a folder holds, and their pixels as RGB with 8 bits, whatever they are stored as."""

from __future__ import annotations

import functools
import os
import re
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import PIL.features
import PIL.Image
import PIL.ImageOps

from ..errors import FBTError, one_line

EXTENSIONS = (
    *(
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".mpo",
        ".png",
        ".apng",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".bmp",
        ".dib",
        ".gif",
    ),
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
        paths: of the files that may be images, in alphabetical order of their folders and in these of their names.
        left_out: how many others there are, by extension.
        example: one of those, empty where there is none.
        locked: folders that cannot be read, which are counted there too.
    """

    paths: list[str]
    left_out: Counter[str]
    example: str
    locked: Sequence[str] = ()

    def others(self) -> str:
        """What is left out, in words; empty where nothing is."""
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(self.left_out.items()))
        return f"{kinds}, such as {printable(self.example)}" if kinds else ""


class UnreadableImageError(FBTError):
    """A file that is no image that can be read; its line names it."""


def printable(path: str | os.PathLike[str]) -> str:
    """A path on one line that any terminal and file takes: names may be of bytes that are no text."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def hidden(name: str) -> bool:
    """Whether a file or folder is a system's and no user's: ``.DS_Store``, ``._x.jpg``, ``.ipynb_checkpoints``."""
    return name.startswith(".") or name in _NO_CLASSES


def subfolders(folder: str | Path) -> list[str]:
    """Names of the folders in a folder, links to folders among them, in alphabetical order; hidden ones are left out.

    A link that leads to itself or nowhere is none.

    Raises:
        OSError: if the folder cannot be read.
    """
    return sorted(entry.name for entry in os.scandir(folder) if os.path.isdir(entry) and not hidden(entry.name))


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in a folder that are classes, in alphabetical order.

    Raises:
        FBTError: if there is none.
    """
    names = subfolders(folder)
    if not names:
        raise FBTError(f"ImageFolder: {folder} has no class folder: images are expected as {folder}/CLASS/NAME.jpg")
    return names


UNREADABLE_FOLDER = "folder that cannot be read"
"""How a :class:`Listing` counts one."""


def list_images(folder: Path, by_content: bool = False) -> Listing:
    """The images in a folder and in those below it.

    Links are followed, but a folder that several links lead to, or one that is inside itself, is read once.

    Args:
        folder: where to begin.
        by_content: whether files whose names have no ending are looked into; without, they are left out.

    Raises:
        OSError: if the folder cannot be read.
    """
    paths: list[tuple[str, str]] = []
    left_out, example, locked = Counter[str](), ("", ""), []
    for place, name, kind in _entries(folder):
        if not kind and name.lower().endswith(_readable()):
            paths.append((place, name))
            continue
        if not kind and not _ENDING.search(name):
            if by_content and _begins_as_image(f"{place}{os.sep}{name}"):
                paths.append((place, name))
                continue
            kind = "without extension"
        if kind == UNREADABLE_FOLDER:
            locked.append(f"{place}{os.sep}{name}")
        left_out[kind or Path(name).suffix.lower()] += 1
        example = min(example, (place, name)) if example[1] else (place, name)
    found = [f"{place}{os.sep}{name}" for place, name in sorted(paths)]
    return Listing(found, left_out, os.sep.join(example) if left_out else "", sorted(locked))


_ENDING = re.compile(r"[^.]\.(?=[a-z0-9]*[a-z])[a-z0-9]{1,8}$", re.IGNORECASE)
"""``.txt`` or ``.heic``; the last part of ``4.5 years`` or ``IMG_1.large_1`` is none."""


def _entries(folder: Path) -> Iterator[tuple[str, str, str]]:
    """All files: folder, name, and why it is none to read, which is mostly empty.

    A folder's own contents come before those that links lead to, so that files go by their own names where they can.
    """
    seen: set[tuple[int, int]] = set()
    links: deque[str] = deque([str(folder)])
    while links:
        folders = [links.popleft()]
        while folders:
            place = folders.pop()
            try:
                about = os.stat(place)
                entries = sorted(os.scandir(place), key=lambda entry: entry.name)
            except OSError:
                if place == str(folder):
                    raise
                yield *os.path.split(place), UNREADABLE_FOLDER
                continue
            if (about.st_dev, about.st_ino) in seen:
                yield *os.path.split(place), "link to a folder that is read already"
                continue
            seen.add((about.st_dev, about.st_ino))
            for entry in entries:
                if hidden(entry.name):
                    yield place, entry.name, "hidden"
                elif os.path.isdir(entry) if entry.is_symlink() else entry.is_dir():
                    (links if entry.is_symlink() else folders).append(entry.path)
                else:
                    # A link that leads nowhere or to itself is said where it is opened; a pipe would never answer.
                    file = os.path.isfile(entry) or not os.path.exists(entry) if entry.is_symlink() else entry.is_file()
                    yield place, entry.name, "" if file else "neither file nor folder"


@functools.cache
def _readable() -> tuple[str, ...]:
    return tuple(e for e in EXTENSIONS if e not in _OPTIONAL or PIL.features.check(_OPTIONAL[e]))


_MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|BM.{4}\0{4}|II\*\0|MM\0\*|RIFF.{4}WEBP|.{4}ftypavi[fs]|\0\0\0\x0cjP  "
    rb"|\xff\x4f\xff\x51|P[1-6]\n[\d#]|qoif",
    re.DOTALL,
)
"""How files of these formats begin."""


def _begins_as_image(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return bool(_MAGIC.match(file.read(16)))
    except OSError:
        return True  # it may be one: said where it is opened


def read_image(file: str | Path | IO[bytes], name: str = "") -> PIL.Image.Image:
    """The first frame of a file in RGB, upright as its EXIF orientation says.

    Transparency is dropped. Pixels of 16 bits are divided by 257, so that 65535 becomes 255; floating-point pixels are
    from 0 to 1 and are multiplied by 255.

    Args:
        file: a path, or an open file.
        name: of an open file, for messages.

    Raises:
        UnreadableImageError: which file is no readable image, is too large for Pillow (about 179 million pixels), or
            has other pixels than these.
    """
    path = name or printable(file)  # type: ignore[arg-type]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what is odd in a file and still read
            with PIL.Image.open(file) as image:
                image.load()
                return _eight_bits(_upright(image), path).convert("RGB")
    except PIL.Image.DecompressionBombError as error:
        line = f"{path} is too large an image ({one_line(error)}): make it smaller, or remove it"
        raise UnreadableImageError(line) from error
    except UnreadableImageError:
        raise
    except Exception as error:  # decoders raise anything for damaged files, struct.error and IndexError among it
        raise UnreadableImageError(f"{path} is no readable image ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    if isinstance(error, PIL.UnidentifiedImageError):
        return "of no format that Pillow knows"  # its own line repeats the path
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error)


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    try:
        return PIL.ImageOps.exif_transpose(image)
    except Exception:  # pixels are whole, and what EXIF says is not: it says nothing then
        return image


def unreadable(paths: Sequence[str]) -> dict[int, str]:
    """Looks at files once before they are needed: what is wrong with each that cannot be read, by position.

    Of a healthy file the header and the end are read. What seems to lack its end is decoded, and so are formats whose
    end says nothing. Damage in the middle of a file shows only when all of it is decoded, by :func:`read_image`.
    """
    with warnings.catch_warnings():  # here, not in the threads: it changes what all of them share
        warnings.simplefilter("ignore")
        with ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1))) as pool:
            found = pool.map(_problem, paths, chunksize=64)
            return {position: problem for position, problem in enumerate(found) if problem}


def _problem(path: str) -> str:
    if os.path.islink(path) and not os.path.exists(path):
        return f"{printable(path)} is a link that leads nowhere"
    try:
        if os.stat(path).st_size == 0:
            return f"{printable(path)} is empty (0 bytes)"
        with open(path, "rb") as file, PIL.Image.open(file) as image:
            whole = image.mode != "F" and _has_its_end(file, image.format)
    except Exception:  # whatever it is, the reader says it in its own words
        whole = False
    if not whole:
        try:
            read_image(path)
        except UnreadableImageError as error:
            return str(error)
    return ""


_ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b";"}
"""Last bytes of a whole file."""


def _has_its_end(file: IO[bytes], kind: str | None) -> bool:
    """Whether a file ends as files of its format do; False for formats that are not known to."""
    size = file.seek(0, os.SEEK_END)
    if kind == "WEBP":
        file.seek(4)
        return int.from_bytes(file.read(4), "little") + 8 <= size
    if kind not in _ENDS:
        return False
    file.seek(max(0, size - 64))
    return file.read().rstrip(b"\0").endswith(_ENDS[kind])


def upright_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of an image as :func:`read_image` gives it, from its header alone.

    Raises:
        OSError: if it is no image.
    """
    with PIL.Image.open(path) as image:
        turned = image.getexif().get(ORIENTATION, 1) >= 5  # from there on rows are columns
        return (image.width, image.height) if turned else (image.height, image.width)


def _eight_bits(image: PIL.Image.Image, path: str) -> PIL.Image.Image:
    if image.mode.startswith("I"):
        pixels = np.asarray(image).astype(np.int64)
        low, high = int(pixels.min()), int(pixels.max())
        if low < 0 or high > 65535:
            found = f"{low} to {high}"
            raise UnreadableImageError(f"{path}: pixels from {found}; expected 0 to 65535: save it with 8 or 16 bits")
        return PIL.Image.fromarray(((pixels + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 1):  # NaN is neither
            found = f"{values.min():g} to {values.max():g}"
            raise UnreadableImageError(
                f"{path}: floating-point pixels from {found}; expected 0 to 1: save it with 8 bits"
            )
        return PIL.Image.fromarray((values * 255).round().astype(np.uint8))
    return image
