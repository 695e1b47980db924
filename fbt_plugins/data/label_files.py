"""Labels that some images of a folder have: in a table beside them, or by the folder that they are in."""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from ..errors import FBTError, one_line
from .image_dataset import NO_LABEL
from .image_files import printable, subfolders

TABLE = "labels.csv"
"""The table of labels that is looked for."""

UNLABELLED = ("unlabelled", "unlabeled")
"""Names of the folder that stands beside those of the classes."""

_EXPECTED = "expected a first line 'path,label', then one image a line, its path as seen from the images' folder"


def own_name(path: str | Path, root: Path) -> str:
    """How a table calls an image: its path below ``root``; letters with accents are spelt in one way."""
    text = os.path.relpath(path, root) if os.path.isabs(path) else os.path.normpath(path)  # noqa: PTH117
    return unicodedata.normalize("NFC", text.replace(os.sep, "/"))


def read_table(path: Path, root: Path) -> dict[str, str]:
    """Labels by the images' own names; those that are empty are left out.

    Args:
        path: of the table; columns are separated by commas, semicolons or tabs.
        root: folder of the images.

    Raises:
        FBTError: if it cannot be read, has other columns, no label at all, or two labels for one image.
    """
    try:
        stored = path.read_bytes()
    except OSError as error:
        raise FBTError(f"{printable(path)}: {one_line(error)}; {_EXPECTED}") from error
    utf16 = stored.startswith((b"\xff\xfe", b"\xfe\xff"))  # as spreadsheets may write it
    text = stored.decode(*(("utf-16", "replace") if utf16 else ("utf-8-sig", "surrogateescape")))
    head = text.partition("\n")[0]
    delimiter = next((mark for mark in ",;\t" if mark in head), ",")
    labels: dict[str, str] = {}
    try:
        rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        columns = {str(name).strip().lower(): name for name in rows.fieldnames or ()}
        if not {"path", "label"} <= columns.keys():
            raise FBTError(f"{printable(path)} begins with {head.strip()[:60]!r}; {_EXPECTED}")
        for row in rows:
            image, label = ((row[columns[key]] or "").strip() for key in ("path", "label"))
            if not image or not label:
                continue
            name = own_name(image if (root / image).exists() else image.replace("\\", "/"), root)
            if labels.setdefault(name, label) != label:
                both = f"{labels[name]!r} and {label!r}"
                raise FBTError(f"{printable(path)} line {rows.line_num}: {printable(name)} has two labels, {both}")
    except csv.Error as error:
        raise FBTError(f"{printable(path)}: {one_line(error)}; {_EXPECTED}") from error
    if not labels:
        none = "to train without labels remove it, or say labels=None (fbt distill: --labels none)"
        raise FBTError(f"{printable(path)} has no image with a label; {_EXPECTED}; {none}")
    return labels


def folder_classes(root: Path) -> list[str]:
    """Names of the folders in ``root`` that are classes, in alphabetical order."""
    return [name for name in subfolders(root) if name.lower() not in UNLABELLED]


def has_unlabelled(root: Path) -> bool:
    """Whether one of the folders in ``root`` is the one of images without labels."""
    return any(name.lower() in UNLABELLED for name in subfolders(root))


def in_order(names: Sequence[str]) -> list[str]:
    """Classes in the order of their numbers: alphabetical, and by value where all are whole numbers."""
    return sorted(set(names), key=int if all(name.isascii() and name.isdigit() for name in names) else None)


def numbered(names: Sequence[str], classes: Sequence[str], where: str) -> list[int]:
    """Class numbers of images, -1 of those whose name is empty.

    Raises:
        FBTError: for a class that is not there.
    """
    numbers = {"": NO_LABEL} | {name: number for number, name in enumerate(classes)}
    if unknown := next((name for name in names if name not in numbers), None):
        raise FBTError(f"{where}: label {unknown!r} is none of classes={list(classes)[:5]}{'...' * (len(classes) > 5)}")
    return [numbers[name] for name in names]
