"""What a run's student says about images that are files: classes with probabilities, or embeddings."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...data.image_files import list_images, printable, read_image
from ...errors import FBTError, one_line, user_path
from ...files import write_atomic
from ..loaders import worker_context
from .student import Student


@dataclass
class Predictions:
    """Answers to images, in the order of the images.

    Attributes:
        classes: names, by number; empty where the values are embeddings.
        files: that were read.
        values: (N, C) probabilities or (N, D) embeddings, float32.
        left_out: files that were not, each with the reason.
    """

    classes: Sequence[str]
    files: list[str] = field(default_factory=list)
    values: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    left_out: list[tuple[str, str]] = field(default_factory=list)


def find_images(given: Sequence[str]) -> tuple[list[str], int]:
    """Image files among files and folders, and how many other files the folders hold.

    A folder's are those below it with the name of an image; a file that is named is taken whatever it is called.

    Raises:
        FBTError: if one is not there, or there is no image in all of them.
    """
    files: list[str] = []
    others = 0
    for name in given:
        path = user_path(name)
        if path.is_dir():
            found = list_images(path)
            files += map(str, found.paths)
            others += sum(found.left_out.values())
        elif path.is_file():
            files.append(str(path))
        else:
            raise FBTError(f"{name}: no such file or folder")
    if not files:
        raise FBTError(f"{', '.join(given)}: no image there")
    return list(dict.fromkeys(files)), others


class _Images(Dataset[tuple[int, Tensor | str]]):
    """Files as a student takes them: each one's position, and its tensor or why there is none."""

    def __init__(self, files: Sequence[str], student: Student) -> None:
        self.files, self.transform, self.size = files, student.transform, student.image_size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, position: int) -> tuple[int, Tensor | str]:
        path = self.files[position]
        try:
            image = read_image(path)
        except FBTError as error:
            return position, " ".join(error.lines()).removeprefix(printable(path)).removeprefix(":").strip()
        try:
            tensor = self.transform(image)
        except (TypeError, ValueError, RuntimeError) as error:
            return position, f"the run's transforms fail on it ({one_line(error)})"
        if tensor.shape[1:] != self.size:
            found, wanted = ("x".join(map(str, size)) for size in (tensor.shape[1:], self.size))
            stored = f"{image.height}x{image.width}"
            return position, f"the run's transforms make {found} of its {stored} pixels, the student takes {wanted}"
        return position, tensor


def predict(
    student: Student,
    files: Sequence[str],
    embeddings: bool = False,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    workers: int = 0,
    done: Callable[[int], object] = lambda count: None,
) -> Predictions:
    """Runs a student on image files, each through the transforms of the run's own test.

    Args:
        student: of a run.
        files: paths.
        embeddings: features in the place of probabilities; a student without a classifier has nothing else.
        batch_size: images at once.
        device: where the student runs.
        workers: processes that read images.
        done: told how many files were dealt with since it was last called.

    Raises:
        FBTError: if none of the files can be read, or what the student says is not finite.
    """
    model = student.model.to(device)
    embeddings = embeddings or model.num_classes == 0
    found = Predictions(() if embeddings else student.classes)
    rows = []
    for batch in _batches(_Images(files, student), batch_size, workers):
        good = [(position, image) for position, image in batch if isinstance(image, Tensor)]
        found.left_out += [(files[position], reason) for position, reason in batch if isinstance(reason, str)]
        if good:
            with torch.no_grad():
                known = model.knowledge(torch.stack([image for _, image in good]).to(device))
                values = known.features if embeddings else known.output.softmax(1)
            names = [files[position] for position, _ in good]
            bad = values.isfinite().flatten(1).all(1).logical_not().tolist()
            if any(bad):
                what = "features" if embeddings else "outputs"
                name = printable(names[bad.index(True)])
                raise FBTError(
                    f"{student.path}: the student's {what} are not finite ({name}), as where training diverged"
                )
            rows.append(values.float().cpu().numpy())
            found.files += names
        done(len(batch))
    if not rows:
        path, reason = found.left_out[0]
        raise FBTError(f"none of {len(files):,} files can be used; {printable(path)}: {reason}")
    found.values = np.concatenate(rows)
    return found


def _batches(images: _Images, batch_size: int, workers: int) -> Iterator[list[tuple[int, Tensor | str]]]:
    loader: Any = DataLoader(
        images,
        batch_size,
        num_workers=workers,
        collate_fn=list,
        multiprocessing_context=worker_context() if workers else None,
    )
    return iter(loader)


def as_csv(found: Predictions, top: int) -> str:
    """A line per image: the file, then class and probability of the likeliest classes, or all numbers of its embedding.

    Args:
        found: to write.
        top: how many classes.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    if found.classes:
        top = min(top, len(found.classes))
        table.writerow(["file", *(f"{what}_{n}" for n in range(1, top + 1) for what in ("class", "probability"))])
        order = np.argsort(-found.values, axis=1, kind="stable")[:, :top]
        for path, row, best in zip(found.files, found.values, order, strict=True):
            table.writerow([path, *(cell for n in best for cell in (found.classes[n], f"{row[n]:.6f}"))])
    else:
        table.writerow(["file", *(f"feature_{n}" for n in range(1, found.values.shape[1] + 1))])
        table.writerows(
            [path, *(f"{value:.8g}" for value in row)] for path, row in zip(found.files, found.values, strict=True)
        )
    return text.getvalue()


def write_predictions(found: Predictions, out: Path, top: int) -> list[Path]:
    """Writes predictions as CSV, or as NPY with a JSON file beside it that names rows and columns.

    Returns:
        The files that were written.

    Raises:
        FBTError: if one cannot be written.
    """
    try:
        if out.suffix == ".csv":
            write_atomic(out, as_csv(found, top).encode("utf-8", "surrogateescape"))  # names of files are any bytes
            return [out]
        array = io.BytesIO()
        np.save(array, found.values)
        names = out.with_name(f"{out.name}.json")
        text = json.dumps({"files": found.files, "classes": list(found.classes)}, ensure_ascii=False) + "\n"
        write_atomic(names, text.encode("utf-8", "backslashreplace"))  # JSON's own way to write such a name
        write_atomic(out, array.getvalue())
        return [out, names]
    except OSError as error:
        raise FBTError(f"--out {out}: it cannot be written ({error.strerror})") from error
