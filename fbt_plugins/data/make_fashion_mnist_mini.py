"""Makes the embedded data set, fashion_mnist_mini.npz, from the original files of Fashion-MNIST.

5,000 training and 1,000 validation images (500 and 100 of each class, disjoint, both from the training split) and 2,000
test images (200 of each class, from the test split). Which ones is decided by hashing, so it is the same everywhere.

The file holds, for each of train, val and test: NAME_images (N, 28, 28) uint8, NAME_labels (N,) uint8, NAME_indices
(N,) int32, the position of each image in its original split, ascending.
"""

from __future__ import annotations

import argparse
import io
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..errors import FBTError, user_path
from ..randomness import stratified_order
from .fashion_mnist import EMBEDDED, read_original

# name -> (original split, first and last position in its stratified order)
PARTS = {"train": ("train", 0, 5000), "val": ("train", 5000, 6000), "test": ("test", 0, 2000)}


def make(root: Path, out: Path) -> None:
    """Writes the data set; the same originals and zlib give the same bytes.

    Args:
        root: folder with the four original files, as `read_original` finds them.
        out: the .npz file to write.

    Raises:
        FBTError: if an original file is missing or damaged.
    """
    originals = {split: read_original(root, split) for split in ("train", "test")}
    orders = {split: stratified_order(original.labels.tolist()) for split, original in originals.items()}
    arrays: dict[str, np.ndarray] = {}
    for name, (split, first, last) in PARTS.items():
        indices = torch.tensor(orders[split][first:last]).sort().values
        arrays[f"{name}_images"] = originals[split].images[indices].numpy()
        arrays[f"{name}_labels"] = originals[split].labels[indices].to(torch.uint8).numpy()
        arrays[f"{name}_indices"] = indices.to(torch.int32).numpy()
    _write_npz(out, arrays)


def _write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Like numpy.savez_compressed, but without the time and the system of writing."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3
            archive.writestr(entry, buffer.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fbt_plugins.data.make_fashion_mnist_mini",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example (Debian or Ubuntu, after 'apt install dataset-fashion-mnist'):\n"
        "  python -m fbt_plugins.data.make_fashion_mnist_mini --root /usr/share/datasets/fashion-mnist",
    )
    parser.add_argument(
        "--root", type=user_path, required=True, help="folder with the four original idx files, .gz or not"
    )
    parser.add_argument(
        "--out",
        type=user_path,
        default=Path(__file__).parent / "embedded" / EMBEDDED,
        help="file to write (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    try:
        make(options.root, options.out)
    except (FBTError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{options.out}: {options.out.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
