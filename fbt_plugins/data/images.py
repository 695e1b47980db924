"""Any folder of images: nested as it comes, odd files among them, with labels for all, some or none."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.registry import DATASETS

from ..console import say
from ..errors import ConfigError, FBTError, nearest, one_line, repeated
from ..randomness import stratified_order
from .file_dataset import STOP, FileDataset, check_on_error
from .image_dataset import NO_LABEL, TransformConfigs
from .image_files import UNREADABLE_FOLDER, Listing, list_images, printable, unreadable, upright_size
from .label_files import TABLE, folder_classes, has_unlabelled, in_order, numbered, own_name, read_table

AUTO, FOLDERS = "auto", "folders"
_NAMED = 20
"""Files that are named at the start; of more, the number is said."""
_said: set[str] = set()


@DATASETS.register_module()
class Images(FileDataset):
    """All images below a folder, with labels for all, some or none of them.

    At the start each file is looked at. What is no image by its name is left out, and counted; an image that cannot be
    read is named. Files are decoded as `read_image` says. Images go by their paths' alphabetical order.

    Args:
        root: the folder.
        split: ``"train"``, or ``"val"``: those that are held out.
        validation: how many images are held out, always the same ones of a folder: labelled ones, in equal parts of all
            classes, where any has a label.
        labels: ``"auto"``: those of ``root/labels.csv`` if there is one, else of a folder for each class beside one
            that is called ``unlabelled``, else none. ``"folders"``: each folder in ``root`` is a class. A path: of a
            table like ``labels.csv``, with columns ``path`` (below ``root``) and ``label``. None: no labels.
        classes: the names of all classes, in the order of their numbers; by default those that occur, in alphabetical
            order, or in that of their values where all are whole numbers.
        on_error: ``"skip"`` leaves out what cannot be read; should it show in training only, the next image is shown
            in its place. ``"stop"`` ends the run with the line that names it.
        look: whether files are looked at in advance. False finds what cannot be read in training only, as a folder of
            millions of images on a slow disk may want it.
        transforms, seed: see `ImageDataset`.

    Raises:
        FBTError: if the folder has no image that can be read, if labels and images do not fit each other, and with
            ``on_error="stop"`` if any image cannot be read.
    """

    def __init__(
        self,
        root: str,
        split: str = "train",
        validation: int = 0,
        labels: str | None = AUTO,
        classes: Sequence[str] | None = None,
        on_error: str = "skip",
        look: bool = True,
        transforms: TransformConfigs = (),
        seed: int = 0,
    ) -> None:
        check_on_error("Images", on_error)
        if split not in ("train", "val"):
            hint = " ('test' images are another folder: give its root)" if split == "test" else ""
            raise ConfigError(f"Images: split is 'train' or 'val', not {split!r}{hint or nearest(split, ['val'])}")
        folder = _folder(root)
        try:
            table = _table(folder, labels)
            listing = list_images(folder, by_content=True)
            names, paths = self._read(folder, listing, table, labels, on_error, look)
        except OSError as error:
            raise FBTError(f"Images: {one_line(error)} ({printable(folder)})") from error
        known = _different(classes) if classes is not None else in_order([name for name in names if name])
        numbers = numbered(names, known, f"Images: {printable(folder)}")
        chosen = self._split(numbers, split, validation)
        paths, numbers = [paths[position] for position in chosen], [numbers[position] for position in chosen]
        super().__init__(folder, paths, known, numbers, transforms, seed, on_error)

    @staticmethod
    def _read(
        folder: Path, listing: Listing, table: Path | None, labels: str | None, on_error: str, look: bool
    ) -> tuple[list[str], list[str]]:
        """Labels (empty where there is none) and paths of the images that can be read; says what is left out."""
        others = Counter(listing.left_out)
        if table is not None and table.parent == folder:
            others -= Counter({table.suffix.lower(): 1})
        bad = unreadable(listing.paths) if look else {}
        problems = list(bad.values())
        del others[UNREADABLE_FOLDER]
        problems += [f"{printable(locked)} is a folder that cannot be read" for locked in listing.locked]
        paths = [path for position, path in enumerate(listing.paths) if position not in bad]
        if not paths:
            left_out = Listing([], others, listing.example).others()
            hint = f" (left out: {left_out})" if left_out else ""
            hint = f": {problems[0]}{' and others alike' * (len(problems) > 1)}" if problems else hint
            raise FBTError(f"Images: {printable(folder)} has no image that can be read{hint}")
        own = [own_name(path, folder) for path in paths]
        if table is not None:
            given = read_table(table, folder)
            problems += _lost(table, given, own, [own_name(listing.paths[position], folder) for position in bad])
            names = [given.get(name, "") for name in own]
        elif labels == FOLDERS or (labels == AUTO and has_unlabelled(folder)):
            known = set(folder_classes(folder))
            tops = [os.path.relpath(path, folder).partition(os.sep) for path in paths]
            names = [top if rest and top in known else "" for top, _, rest in tops]
            if lacking := known - set(names):
                raise FBTError(
                    f"Images: {printable(folder)} has no image that can be read in {min(lacking)!r}: "
                    "add some, or remove that folder"
                )
        else:
            names = [""] * len(paths)
        if problems and on_error == STOP:
            count = f" ({len(problems) - 1} more like it)" if problems[1:] else ""
            raise FBTError(f"Images: {problems[0]}{count}; mend or remove it, or set on_error='skip'")
        _say(folder, problems, Listing([], others, listing.example).others())
        return names, paths

    @staticmethod
    def _split(numbers: Sequence[int], split: str, validation: int) -> list[int]:
        """Positions of the split's images."""
        free = [position for position, number in enumerate(numbers) if number != NO_LABEL] or list(range(len(numbers)))
        least, most = int(split == "val"), len(free) - (len(free) == len(numbers))
        if not least <= validation <= most:
            raise ConfigError(f"Images: validation is {least} to {most} for split {split!r}, got {validation}")
        order = stratified_order([numbers[position] for position in free])
        held = {free[position] for position in order[:validation]}
        return [position for position in range(len(numbers)) if (position in held) == (split == "val")]

    @classmethod
    def describe(cls, transforms: TransformConfigs, **options: Any) -> tuple[int | None, tuple[int, int] | None]:
        _, size = super().describe(transforms, **options)
        if options.get("classes") is not None:
            return len(_different(options["classes"])), size
        try:
            folder, labels = _folder(options["root"]), options.get("labels", AUTO)
            if (table := _table(folder, labels)) is not None:
                given = read_table(table, folder)
                own = {own_name(path, folder) for path in list_images(folder, by_content=True).paths}
                return len({label for name, label in given.items() if name in own}), size
            sorted_in = labels == FOLDERS or (labels == AUTO and has_unlabelled(folder))
            return len(folder_classes(folder)) if sorted_in else 0, size
        except (FBTError, OSError, KeyError, TypeError):  # not on this machine, or wrong: said where they are checked
            return None, size

    @classmethod
    def stored_size(cls, **options: Any) -> tuple[int, int] | None:
        try:
            for path in list_images(_folder(options["root"]), by_content=True).paths[:100]:
                try:
                    return upright_size(path)
                except Exception:  # the run says what is wrong with it
                    continue
        except (FBTError, OSError, KeyError, TypeError):
            pass
        return None


def _different(classes: Sequence[str]) -> list[str]:
    """The classes that are given, once none was seen to be there twice."""
    if twice := repeated(classes):
        raise ConfigError(f"Images: classes: {twice[0]!r} is there twice")
    return list(classes)


def _folder(root: str) -> Path:
    folder = Path(root).expanduser().resolve()
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "is no folder"
        raise FBTError(f"Images: {printable(folder)} {what} of images")
    return folder


def _table(folder: Path, labels: str | None) -> Path | None:
    """The table of labels, where there is one."""
    if labels in (None, FOLDERS):
        return None
    if labels != AUTO:
        return Path(str(labels)).expanduser().resolve()
    return folder / TABLE if (folder / TABLE).is_file() else None


def _lost(table: Path, given: dict[str, str], own: Sequence[str], unread: Sequence[str]) -> list[str]:
    """A line about rows of a table whose images are not there, or none.

    Raises:
        FBTError: if no row's image is.
    """
    missing = given.keys() - {*own, *unread}
    if given and not given.keys() & set(own):
        example = printable(next(iter(given)))
        raise FBTError(
            f"{printable(table)}: none of its {len(given):,} labels belongs to an image: {example!r} is not there; "
            f"paths are as seen from the images' folder, such as {printable(own[0])!r}"
        )
    first = next((name for name in given if name in missing), "")
    return (
        [f"{printable(table)}: {len(missing):,} labels without an image, such as {printable(first)}"] if missing else []
    )


def _say(folder: Path, problems: Sequence[str], others: str) -> None:
    """What is left out of a folder, once in a run, whatever its splits."""
    lines = [f"data     {printable(folder)}: left out {others}"] if others else []
    if problems:
        lines.append(f"data     {printable(folder)}: {len(problems):,} left out, for")
        lines += [f"           {problem}" for problem in problems[:_NAMED]]
        lines += [f"           and {len(problems) - _NAMED:,} more"] if problems[_NAMED:] else []
    if (text := "\n".join(lines)) and text not in _said:
        _said.add(text)
        say(text)
