"""A folder of images as data for training: which of them have labels, and which are held out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data import NO_LABEL, Images
from ...data.image_files import list_images, printable, subfolders
from ...data.label_files import TABLE, has_unlabelled
from ...errors import ConfigError, FBTError, one_line, user_path

AUTO, FOLDERS, NONE = "auto", "folders", "none"
LABELS = "auto, folders, none, or a file like labels.csv"
_SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
LEAST = 6
"""Images without which there is nothing to train on and to hold out."""

_ENOUGH, _MOST = 50, 2_000
"""Held-out images: a tenth, but up to a fifth until there are so many, and no more than these."""


@dataclass(frozen=True)
class Folder:
    """Images for training and validation.

    Attributes:
        train, val, test: arguments of ``Images`` but the transforms; no ``test`` where there are none for it.
        classes: their names; none where no image has a label.
        images, labelled: numbers of training images, and of those with a label.
        held_out: number of validation images.
        lines: what it is, for people to read.
    """

    train: dict[str, Any]
    val: dict[str, Any]
    test: dict[str, Any] | None
    classes: tuple[str, ...]
    images: int
    labelled: int
    held_out: int
    lines: tuple[str, ...]


def read_folder(data: str | Path, labels: str | None = AUTO) -> Folder:
    """Looks at a folder, and at all images in it.

    A folder that has nothing but ``train`` and ``val`` (and ``test``) is taken apart like that. In any other, images
    for validation are held out of its own: a tenth, of those with labels where there are any.

    Args:
        data: the folder.
        labels: ``"auto"``: of ``labels.csv``, of folders beside one called ``unlabelled``, or of folders that all have
            images directly in them, and where there are no others; ``"folders"``: each folder is a class; ``"none"``;
            or the path of a table.

    Raises:
        FBTError: if it is no folder, or has too few images.
    """
    root = user_path(data).absolute()
    if not root.is_dir():
        raise FBTError(f"--data {data}: {'it is a file, not a folder' if root.exists() else 'there is no such folder'}")
    try:
        parts = _parts(root)
    except OSError as error:
        raise FBTError(f"--data {data}: {one_line(error)}") from error
    train = _options(parts["train"], labels)
    seen = Images(**train)
    classes, known = tuple(seen.classes), [label for label in seen.labels if label != NO_LABEL]
    images = len(seen)
    if labels == FOLDERS and not classes:
        raise FBTError(f"--labels folders: {printable(parts['train'])} has no folders, each of a class")
    if images < LEAST:
        raise FBTError(f"--data {data}: {images} images are too few to train on; give {LEAST} or more")
    test = None
    if parts["val"] is None:
        held_out = _held_out(data, images, len(known), len(set(known)))
        train |= {"validation": held_out}
        val = {**train, "split": "val"}
        images, labelled = images - held_out, len(known) - (held_out if known else 0)
        which = "with a label " if known and len(known) < len(seen) else ""
        held = f"{held_out:,} {which}of them are held out, to choose the epoch by"
    else:
        sorted_in = train.get("labels") == FOLDERS
        if classes:
            train |= {"classes": list(classes)}
        labelled, (val, held_out) = len(known), _other(parts["val"], classes, sorted_in)
        held = f"{held_out:,} images of {parts['val'].name}/, to choose the epoch by"
        if parts["test"] is not None:
            test = _other(parts["test"], classes, sorted_in)[0]
    lines = (
        f"data     {printable(parts['train'])}: {images + held_out * (parts['val'] is None):,} images, {_words(seen)}",
        f"         {held}",
    )
    return Folder(train, val, test, classes, images, labelled, held_out, lines)


def _parts(root: Path) -> dict[str, Any]:
    """The folders of the splits; one that is in none of them is that of the training images."""
    names = subfolders(root)
    found = {split: [n for n in names if n.lower() in known] for split, known in _SPLITS.items()}
    of_splits = [name for known in found.values() for name in known]
    taken_apart = found["train"] and sorted(of_splits) == names and not (root / TABLE).is_file()
    if not taken_apart:
        return {"train": root, "val": None, "test": None}
    return {split: root / known[0] if known else None for split, known in found.items()}


def _options(root: Path, labels: str | None) -> dict[str, Any]:
    """Arguments of ``Images`` for a folder, with where its labels are said out."""
    if labels == AUTO:
        inside = (root / TABLE).is_file() or has_unlabelled(root)
        labels = AUTO if inside else FOLDERS if _sorted_in_classes(root) else NONE
    elif labels not in (FOLDERS, NONE, None) and not user_path(str(labels)).is_file():
        raise ConfigError(f"--labels {labels}: there is no such file; write {LABELS}")
    elif labels not in (FOLDERS, NONE, None):
        labels = str(user_path(str(labels)).absolute())
    options: dict[str, Any] = {"root": str(root), "split": "train"}
    return options | ({} if labels == AUTO else {"labels": None if labels == NONE else labels})


def _sorted_in_classes(root: Path) -> bool:
    """Whether a folder looks like one of classes: two or more folders, and all images directly in them."""
    try:
        paths = list_images(root, by_content=True).paths
    except OSError:  # Images says what is wrong
        return False
    places = {os.path.relpath(path, root).rpartition(os.sep)[0] for path in paths}
    folders = set(subfolders(root))
    return len(folders) > 1 and places == folders


def _other(root: Path, classes: Sequence[str], sorted_in: bool) -> tuple[dict[str, Any], int]:
    """Arguments of ``Images`` for the images of another split, all of them, and their number.

    Args:
        root: their folder.
        classes: of the training images.
        sorted_in: whether those are sorted in folders of classes.
    """
    table = (root / TABLE).is_file()
    labels = NONE if not classes else AUTO if table or not sorted_in else FOLDERS
    options = _options(root, labels) | ({"classes": list(classes)} if classes else {})
    seen = Images(**options)
    if classes and not seen.num_labelled:
        raise FBTError(
            f"--data: images of train/ have labels, and those of {root.name}/ have none; "
            f"sort them into folders of classes too, or take {root.name}/ away: others are held out then"
        )
    return options, len(seen)


def _held_out(data: str | Path, images: int, labelled: int, classes: int) -> int:
    """How many images are held out: those with labels where there are any, one or more of each class, half at most."""
    if labelled == 1:
        raise FBTError(f"--data {data}: only one image has a label; give labels to more, or say --labels none")
    free = labelled or images
    wanted = min(max(round(free / 10), min(free // 5, _ENOUGH), 3), _MOST)
    return min(max(wanted, classes), free // 2)


def _words(seen: Images) -> str:
    """What labels a data set has."""
    if not seen.classes:
        return "no labels (--labels folders: each folder is a class)"
    return f"{seen.num_labelled:,} with a label, of {len(seen.classes)} classes (--labels none: without)"
