"""WebDataset's shards (tar files), read at any place: an index of their members makes a data set of them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from ..errors import FBTError, one_line
from .image_dataset import NO_LABEL
from .image_files import printable

IMAGES = ("jpg", "jpeg", "png", "webp", "ppm", "pgm", "bmp", "gif", "tif", "tiff", "avif", "jp2", "img")
"""What a sample's image is called; the first that it has is taken."""
_INFO = ("_info.json", "info.json")


class Member(NamedTuple):
    """An image in a shard.

    Attributes:
        shard: path of the tar file.
        name: in it.
        offset: where its bytes begin in the shard.
        size: how many there are.
        label: class number, -1 where it has none.
    """

    shard: str
    name: str
    offset: int
    size: int
    label: int


def shards_of(root: Path, split: str) -> list[Path]:
    """The shards of a split, in their order.

    Args:
        root: their folder.
        split: one that an ``_info.json`` beside them lists; names with braces, ``x-{0000..0012}.tar``; or a name that
            is that of a folder in ``root``, or part of the shards' own.

    Raises:
        FBTError: if there is none, or one is missing.
    """
    if ".tar" in split:
        names = list(_expanded(split.partition("|")[0]))
    elif listed := _listed(root, split):
        names = listed
    else:
        inner = root / split
        found = sorted((inner if inner.is_dir() else root).glob("*.tar"))
        names = [str(path) for path in found if inner.is_dir() or split in path.name or split == "all"]
        if not names:
            what = f"{len(found)} shards, and none has {split!r} in its name" if found else "no shard (*.tar)"
            raise FBTError(f"timm: {printable(root)} has {what}; split may be 'NAME-{{0000..0012}}.tar', or 'all'")
    paths = [root / name for name in names]
    if missing := [path for path in paths if not path.is_file()]:
        raise FBTError(f"timm: there is no shard {printable(missing[0])}; they are read from files on this machine")
    return paths


def _expanded(pattern: str) -> Iterator[str]:
    """``a-{00..02}.tar`` -> a-00.tar, a-01.tar, a-02.tar."""
    before, brace, rest = pattern.partition("{")
    inside, end, after = rest.partition("}")
    if not brace or not end:
        yield pattern
        return
    first, dots, last = inside.partition("..")
    if dots and first.isdigit() and last.isdigit():
        options = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    else:
        options = inside.split(",")
    for option in options:
        yield from _expanded(before + option + after)


def _listed(root: Path, split: str) -> list[str]:
    for name in _INFO:
        try:
            return list(json.loads((root / name).read_text())["splits"][split]["filenames"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return []


def members(shards: Sequence[Path], image_keys: Sequence[str] = IMAGES, label_key: str = "cls") -> list[Member]:
    """All images of some shards, in the shards' own order.

    A sample is the members that share a name up to its first dot. Its label is the number in the member ``.cls``, or
    ``label_key`` of its ``.json``; without, it has none.

    Raises:
        FBTError: if a shard is no plain tar file or is cut off, or a label is no class number.
    """
    found: list[Member] = []
    for shard in shards:
        here = len(found)
        try:
            with tarfile.open(shard, "r:") as archive:
                found += _samples(shard, archive, image_keys, label_key)
        except (tarfile.TarError, OSError, EOFError) as error:
            hint = "shards are plain .tar files, since others cannot be read at any place"
            raise FBTError(f"timm: {printable(shard)}: {one_line(error)}; {hint}") from error
        if any(member.offset + member.size > shard.stat().st_size for member in found[here:]):
            raise FBTError(f"timm: {printable(shard)} is cut off: its last image lies beyond its end")
    return found


def _samples(shard: Path, archive: tarfile.TarFile, image_keys: Sequence[str], label_key: str) -> Iterator[Member]:
    images: dict[str, dict[str, tarfile.TarInfo]] = {}
    labels: dict[str, int] = {}
    for member in archive:
        folder, _, file = member.name.rpartition("/")
        stem, _, kind = file.partition(".")
        if not member.isreg() or not stem:
            continue
        key, kind = f"{folder}/{stem}", kind.lower()
        if kind in image_keys:
            images.setdefault(key, {})[kind] = member
        elif kind in (label_key, "json") and (content := archive.extractfile(member)) is not None:
            text = content.read().decode(errors="replace")
            try:
                value = json.loads(text).get(label_key) if kind == "json" and label_key != "json" else text.strip()
                if value not in (None, ""):
                    labels.setdefault(key, int(value))
            except (ValueError, TypeError, AttributeError) as error:
                where = f"{printable(shard)}: {printable(member.name)}"
                raise FBTError(f"timm: {where} says {text.strip()[:40]!r}, which is no class number") from error
    for key, kinds in images.items():
        image = next(kinds[kind] for kind in image_keys if kind in kinds)
        yield Member(str(shard), image.name, image.offset_data, image.size, max(labels.get(key, NO_LABEL), NO_LABEL))


def opened(member: Member) -> IO[bytes]:
    """The bytes of an image. The shard is opened anew: processes that share an open file would share its place."""
    with open(member.shard, "rb") as file:  # noqa: PTH123
        file.seek(member.offset)
        return io.BytesIO(file.read(member.size))
