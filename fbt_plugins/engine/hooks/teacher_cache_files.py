"""The files of a teacher cache: half-precision arrays and the key that says what they were computed from."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import FBTError, one_line
from ...files import own_folder, read_json, write_atomic
from ...models.knowledge import Knowledge
from ...models.weights import file_sha256

KEY = "key.json"
DIGESTS = "sha256"
"""In that file, beside what the numbers depend on: the digests of the arrays' files, by part."""

UNFINISHED = ".tmp"
"""End of the name of a folder that is still being filled."""

Shapes = Mapping[str, tuple[int, ...]]
"""Of "features" and "logits": (views, images, width); of "stage_3": (views, images, ...), as the stage gives it."""

STAGE = "stage_"


def bytes_of(shapes: Shapes) -> int:
    """How large the arrays' files are."""
    return sum(2 * math.prod(shape) for shape in shapes.values())


def room_for(folder: Path, shapes: Shapes) -> None:
    """Holds what files would take against what their disk has left.

    Args:
        folder: where they will be; the one above it is there.
        shapes: of the arrays.

    Raises:
        FBTError: if they would not fit.
    """
    needed, left = bytes_of(shapes), shutil.disk_usage(folder.parent).free
    if needed > left:
        stages = bytes_of({part: shape for part, shape in shapes.items() if part.startswith(STAGE)})
        found = f"its files would take {in_bytes(needed)}, {in_bytes(stages)} of it outputs of stages"
        mend = "set fewer teacher_cache.views, teacher_cache.path on a larger disk, or teacher_cache=None"
        raise FBTError(f"teacher cache {folder}: {found}, and the disk has {in_bytes(left)} left; {mend}")


def in_bytes(count: int) -> str:
    """ "61.4 MB" or "12.3 GB"."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def in_batch(rows: Mapping[str, Tensor]) -> dict[str, Any]:
    """Rows of the arrays as a batch has them: "teacher_features", "teacher_logits", "teacher_stages" by number."""
    stages = {int(part.removeprefix(STAGE)): values for part, values in rows.items() if part.startswith(STAGE)}
    found: dict[str, Any] = {f"teacher_{part}": values for part, values in rows.items() if not part.startswith(STAGE)}
    return found | ({"teacher_stages": stages} if stages else {})


def open_cache(folder: Path, key: Mapping[str, Any], shapes: Shapes) -> dict[str, np.ndarray]:
    """The arrays of a cache, float16, mapped into memory.

    Args:
        folder: where they are.
        key: what they must have been computed from.
        shapes: of the arrays.

    Raises:
        FBTError: if the cache is another's, or damaged.
    """
    mend = "delete that folder, or set another teacher_cache.path"
    try:
        stored = read_json(folder / KEY)
    except FBTError as error:
        raise FBTError(f"teacher cache {folder}: not a whole cache ({error}); {mend}") from error
    try:
        stale = [part for part in key if stored.get(part) != key[part]]
        if stale:
            raise FBTError(f"teacher cache {folder}: it was made with another {', another '.join(stale)}; {mend}")
        digests = stored.get(DIGESTS)  # caches of before have none
        for part in shapes if digests is not None else ():
            if digests.get(part) != file_sha256(folder / f"{part}.npy"):
                raise FBTError(f"teacher cache {folder}: its {part} are not what was written (sha256 differs); {mend}")
        arrays = {part: np.load(folder / f"{part}.npy", mmap_mode="r") for part in shapes}
    except FBTError:
        raise
    except Exception as error:  # numpy reads a file's first lines as Python, and raises whatever that does
        raise FBTError(f"teacher cache {folder}: not a whole cache ({one_line(error)[:200]}); {mend}") from error
    for part, array in arrays.items():
        if array.shape != shapes[part] or array.dtype != np.float16:
            found = f"{part} are {array.dtype} {array.shape}, not float16 {shapes[part]}"
            raise FBTError(f"teacher cache {folder}: not a whole cache ({found}); {mend}")
    return arrays


def take(folder: Path, arrays: Mapping[str, np.ndarray], where: tuple[np.ndarray, np.ndarray]) -> dict[str, Tensor]:
    """What the teacher knows about some images: by part the rows of the arrays, (batch, ...).

    Args:
        folder: of the cache.
        arrays: of :func:`open_cache`.
        where: views and positions.

    Raises:
        FBTError: if a file was cut short since it was opened. To read such a map would end the process by a signal.
    """
    for part, array in arrays.items():
        path = folder / f"{part}.npy"
        if (size := path.stat().st_size) < getattr(array, "offset", 0) + array.nbytes:
            raise FBTError(f"teacher cache {path}: it was cut to {size:,} bytes while it was in use; delete {folder}")
    return {part: torch.from_numpy(np.asarray(array[where])) for part, array in arrays.items()}


def write_cache(folder: Path, key: Mapping[str, Any], shapes: Shapes, batches: Iterable[Knowledge]) -> None:
    """Writes a cache; its folder appears once it is complete.

    Args:
        folder: where it will be; what a killed process left beside it is never looked at.
        key: what it was computed from, as ``key.json``.
        shapes: of the arrays.
        batches: what the teacher knows, view by view and image by image.

    Raises:
        FBTError: if a number has no place in half precision.
        OSError: if the files cannot be written.
    """
    with own_folder(folder, UNFINISHED) as temporary:
        with ExitStack() as stack:
            files = {part: stack.enter_context((temporary / f"{part}.npy").open("wb")) for part in shapes}
            for part, file in files.items():
                header = {"descr": "<f2", "fortran_order": False, "shape": shapes[part]}
                np.lib.format.write_array_header_1_0(file, header)
            for known in batches:
                for part, file in files.items():
                    file.write(_half(known, part))
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
        digests = {part: file_sha256(temporary / f"{part}.npy") for part in shapes}
        write_atomic(temporary / KEY, json.dumps({**key, DIGESTS: digests}, indent=2) + "\n")
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            # Another run was faster; open_cache compares its key with this one.


def _half(known: Knowledge, part: str) -> bytes:
    stage = part.startswith(STAGE)
    values = known.stages[int(part.removeprefix(STAGE))] if stage else getattr(known, part)
    half = values.to("cpu", torch.float16)
    if not half.isfinite().all():
        what = f"stage {part.removeprefix(STAGE)} reaches" if stage else f"{part} reach"
        found = f"the teacher's {what} {values.abs().max().item():.6g}, and half precision ends at 65504"
        raise FBTError(f"teacher cache: {found}; set teacher_cache=None")
    return half.numpy().tobytes()
