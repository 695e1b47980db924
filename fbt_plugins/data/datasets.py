"""Data sets by name in mmengine's DATASETS registry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torchvision
from mmengine.dist import barrier, is_main_process
from mmengine.registry import DATASETS
from torch import Tensor
from torchvision.datasets.utils import check_integrity

from ..console import say
from ..errors import ConfigError, FBTError, nearest, one_line
from ..randomness import stratified_order
from . import fashion_mnist
from .file_dataset import STOP, FileDataset
from .image_dataset import ImageDataset, InMemoryDataset, TransformConfigs
from .image_files import Listing, class_folders, list_images, upright_size

SPLITS = ("train", "val", "test")
_DEBIAN = "install Debian's dataset-fashion-mnist and set root='/usr/share/datasets/fashion-mnist'"


@DATASETS.register_module()
class FashionMNISTMini(InMemoryDataset):
    """The part of Fashion-MNIST inside this package: 5,000 training, 1,000 validation and 2,000 test images, 28x28.

    All have the ten classes in equal parts; training and validation images are both of the original training split.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``.
        transforms, seed, labelled: see `InMemoryDataset`.
    """

    known_classes = torchvision.datasets.FashionMNIST.classes
    known_size = (28, 28)
    known_lengths: ClassVar[Mapping[str, int]] = {"train": 5000, "val": 1000, "test": 2000}

    def __init__(
        self, split: str, transforms: TransformConfigs = (), seed: int = 0, labelled: int | None = None
    ) -> None:
        _check_split(self, split)
        images, labels, _ = fashion_mnist.read_embedded(split)
        super().__init__(self.known_classes, images, labels, transforms, seed, labelled)


@DATASETS.register_module()
class FashionMNIST(InMemoryDataset):
    """Fashion-MNIST: 59,000 training, 1,000 validation (those of `FashionMNISTMini`) and 10,000 test images, 28x28.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``.
        root: folder with the original files, or with ``FashionMNIST/raw`` (torchvision's layout); gzipped or not.
        download: whether to download missing files, to torchvision's layout. Process 0 does; the others wait for it.
        validation: how many training images are held out as ``"val"``, always the same ones: the 1,000, and where that
            is more, others that are not among the training images of `FashionMNISTMini`, in equal parts of all classes.
        transforms, seed, labelled: see `InMemoryDataset`.

    Raises:
        FBTError: if files are missing, damaged, or of another data set.
    """

    known_classes = torchvision.datasets.FashionMNIST.classes
    known_size = (28, 28)
    known_lengths: ClassVar[Mapping[str, int]] = {"train": 60000, "val": 0, "test": 10000}

    def __init__(
        self,
        split: str,
        root: str = "data",
        download: bool = False,
        validation: int = 1000,
        transforms: TransformConfigs = (),
        seed: int = 0,
        labelled: int | None = None,
    ) -> None:
        _check_split(self, split)
        source = "test" if split == "test" else "train"
        failure = ""
        if download:
            target = Path(root).expanduser()
            missing = not fashion_mnist.has_original(root, source)
            failure = _download(lambda: missing and torchvision.datasets.FashionMNIST(target, download=True))
        try:
            images, labels, _ = fashion_mnist.read_original(root, source)
        except FBTError as error:
            if fashion_mnist.has_original(root, source):  # then a file is damaged
                raise
            raise FBTError(f"{error}; {failure or _download_hint(split)}, or {_DEBIAN}") from None
        known = fashion_mnist.read_embedded("test" if split == "test" else "val")
        if not torch.equal(images[known.indices], known.images):
            raise FBTError(f"the idx files in {root} are not those of Fashion-MNIST (MNIST's have the same names)")
        if split != "test":
            held_out = self._held_out(labels, validation)
            chosen = torch.full_like(labels, split == "train", dtype=torch.bool)
            chosen[held_out] = split == "val"
            images, labels = images[chosen], labels[chosen]
        super().__init__(self.known_classes, images, labels, transforms, seed, labelled)

    @classmethod
    def missing(cls, split: str = "train", root: str = "data", download: bool = False, **options: Any) -> str:
        problem = "" if download else fashion_mnist.missing_original(root, "test" if split == "test" else "train")
        return problem and f"{problem}; {_download_hint(split)}, or {_DEBIAN}"

    @staticmethod
    def _held_out(labels: Tensor, validation: int) -> Tensor:
        """Positions of the validation images."""
        known = {split: fashion_mnist.read_embedded(split).indices for split in ("train", "val")}
        free = torch.ones_like(labels, dtype=torch.bool)
        free[torch.cat(list(known.values()))] = False
        others, least = free.nonzero().flatten(), len(known["val"])
        if not least <= validation <= least + len(others):
            raise ConfigError(f"FashionMNIST: validation is {least} to {least + len(others)}, got {validation}")
        if validation == least:
            return known["val"]
        order = torch.tensor(stratified_order(labels[others].tolist()))
        return torch.cat([known["val"], others[order[: validation - least]]])


@DATASETS.register_module()
class CIFAR10(InMemoryDataset):
    """CIFAR-10: 50,000 training images, of which ``validation`` are held out, and 10,000 test images, 32x32.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``.
        root: folder with torchvision's layout, ``cifar-10-batches-py/``.
        download: whether to download and unpack missing or damaged files. Process 0 does; the others wait for it.
        validation: how many training images are held out as ``"val"``, in equal parts of all classes, always the same
            ones; 0 trains on all.
        transforms, seed, labelled: see `InMemoryDataset`.

    Raises:
        FBTError: if files are missing or damaged.
    """

    source: ClassVar[type[torchvision.datasets.CIFAR10]] = torchvision.datasets.CIFAR10
    known_classes: ClassVar[Sequence[str]] = (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )
    known_size = (32, 32)
    known_lengths: ClassVar[Mapping[str, int]] = {"train": 50000, "val": 0, "test": 10000}

    def __init__(
        self,
        split: str,
        root: str = "data",
        download: bool = False,
        validation: int = 1000,
        transforms: TransformConfigs = (),
        seed: int = 0,
        labelled: int | None = None,
    ) -> None:
        _check_split(self, split)
        data = self._read(Path(root).expanduser().resolve(), split, download)
        images, labels = torch.from_numpy(data.data).permute(0, 3, 1, 2), torch.tensor(data.targets)
        if split != "test":
            least, most = int(split == "val"), len(labels) - 1
            if not least <= validation <= most:
                name = type(self).__name__
                raise ConfigError(f"{name}: validation is {least} to {most} for split {split!r}, got {validation}")
            order = torch.tensor(stratified_order(data.targets))
            chosen = (order[:validation] if split == "val" else order[validation:]).sort().values
            images, labels = images[chosen], labels[chosen]
        super().__init__(data.classes, images.contiguous(), labels, transforms, seed, labelled)

    @classmethod
    def _read(cls, root: Path, split: str, download: bool) -> torchvision.datasets.CIFAR10:
        failure = _download(lambda: cls._problem(root) and cls.source(root, download=True)) if download else ""
        try:
            return cls.source(root, split != "test")
        except (RuntimeError, OSError) as error:
            problem = one_line(error) if isinstance(error, OSError) else cls._problem(root)
            raise FBTError(cls._how_to_get_it(problem, failure or _download_hint(split), root)) from error

    @classmethod
    def missing(cls, split: str = "train", root: str = "data", download: bool = False, **options: Any) -> str:
        folder = Path(root).expanduser().resolve()
        problem = "" if download else cls._missing(folder)
        return problem and cls._how_to_get_it(problem, _download_hint(split), folder)

    @classmethod
    def _how_to_get_it(cls, problem: str, hint: str, root: Path) -> str:
        return f"{cls.__name__}: {problem}; {hint}; with {cls.source.filename} in {root} that needs no network"

    @classmethod
    def _problem(cls, root: Path) -> str:
        """Which files are missing or damaged, on one line; empty where none is."""
        if problem := cls._missing(root):
            return problem
        folder = root / cls.source.base_folder
        damaged = [name for name, md5 in cls._sums() if not check_integrity(folder / name, md5)]
        return f"{', '.join(damaged)} in {folder} damaged (another md5 sum)" if damaged else ""

    @classmethod
    def _missing(cls, root: Path) -> str:
        """Which files are missing, on one line; empty where none is."""
        folder = root / cls.source.base_folder
        missing = [name for name, _ in cls._sums() if not (folder / name).is_file()]
        return f"no {', '.join(missing)} in {folder}" if missing else ""

    @classmethod
    def _sums(cls) -> list[tuple[str, str]]:
        """The files, with their md5 sums."""
        meta = (cls.source.meta["filename"], cls.source.meta["md5"])
        return [*cls.source.train_list, *cls.source.test_list, meta]


@DATASETS.register_module()
class CIFAR100(CIFAR10):
    """CIFAR-100, with its 100 fine classes, in ``cifar-100-python/``; otherwise as `CIFAR10`."""

    source = torchvision.datasets.CIFAR100
    known_classes = tuple(str(number) for number in range(100))  # their names are in the files


@DATASETS.register_module()
class ImageFolder(FileDataset):
    """Image files in ``root/train/CLASS/``, ``root/val/CLASS/`` and, if there is one, ``root/test/CLASS/`` (ImageNet).

    Files are opened when they are asked for (`read_image` says how their pixels are read). Classes are numbered in
    alphabetical order of the folders in ``train``, in every split; without ``train``, of the split's own folders. What
    a system leaves behind (names that begin with a dot) and what Pillow does not read is left out, and said.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``.
        root: folder of the splits.
        transforms, seed: see `ImageDataset`.

    Raises:
        FBTError: if there is no such folder, a class of ``train`` without images, or one that ``train`` has not; and,
            when a sample is read, if its file is no readable image.
    """

    def __init__(self, split: str, root: str, transforms: TransformConfigs = (), seed: int = 0) -> None:
        _check_split(self, split)
        folder = self._folder(split, root)
        train = folder.parent / "train"
        try:
            own = class_folders(folder)
            classes = class_folders(train) if train.is_dir() else own
            if unknown := [name for name in own if name not in classes]:
                hint = nearest(unknown[0], classes)
                raise FBTError(f"ImageFolder: {train} has no class {unknown[0]!r}, but {folder} has{hint}")
            found = {name: list_images(folder / name) for name in own}
        except OSError as error:
            raise FBTError(f"ImageFolder: {one_line(error)} ({folder})") from error
        self._say_what_is_missing(split, folder, found)
        paths = [path for name in own for path in found[name].paths]
        numbers = {name: number for number, name in enumerate(classes)}
        labels = [numbers[name] for name in own for _ in found[name].paths]
        super().__init__(folder, paths, classes, labels, transforms, seed, STOP)

    @classmethod
    def describe(cls, transforms: TransformConfigs, **options: Any) -> tuple[int | None, tuple[int, int] | None]:
        _, size = super().describe(transforms, **options)
        try:
            folder = cls._folder(options.get("split", "train"), options["root"])
            train = folder.parent / "train"
            return len(class_folders(train if train.is_dir() else folder)), size
        except (FBTError, OSError, KeyError, TypeError):  # not on this machine, or wrong: said where they are checked
            return None, size

    @classmethod
    def missing(cls, split: str = "train", root: str = "", **options: Any) -> str:
        try:
            class_folders(cls._folder(split, root))
            return ""
        except (FBTError, OSError) as error:
            return one_line(error)

    @classmethod
    def stored_size(cls, **options: Any) -> tuple[int, int] | None:
        try:
            folder = cls._folder(options.get("split", "train"), options["root"])
            first = next(path for name in class_folders(folder) for path in list_images(folder / name).paths)
            return upright_size(first)
        except (FBTError, OSError, KeyError, TypeError, StopIteration):
            return None

    @staticmethod
    def _folder(split: str, root: str) -> Path:
        folder = Path(root).expanduser().resolve() / split
        if not folder.is_dir():
            raise FBTError(
                f"ImageFolder: no folder {folder}; split {split!r} is images such as {folder}/CLASS/NAME.jpg"
            )
        return folder

    @staticmethod
    def _say_what_is_missing(split: str, folder: Path, found: Mapping[str, Listing]) -> None:
        """Refuses classes without images to train on, and says which files and folders are left out."""
        empty = [name for name, listing in found.items() if not listing.paths]
        left_out = sum((listing.left_out for listing in found.values()), Counter[str]())
        example = next((listing.example for listing in found.values() if listing.example), "")
        others = Listing([], left_out, example).others()
        if empty and (split == "train" or len(empty) == len(found)):
            hint = f" (left out: {others})" if others else ""
            names = ", ".join(empty[:5]) + ", ..." * (len(empty) > 5)
            raise FBTError(
                f"ImageFolder: {folder} has no image for the classes {names}{hint}: add some, or remove them"
            )
        if others:
            say(f"data     {folder}: left out {others}")
        if empty:
            say(f"data     {folder}: no image for {len(empty)} of {len(found)} classes, such as {empty[0]}")


def _check_split(dataset: ImageDataset, split: str) -> None:
    if split not in SPLITS:
        raise ConfigError(f"{type(dataset).__name__}: no split {split!r}{nearest(split, SPLITS)}")


def _download_hint(split: str) -> str:
    return f"set download=True (--cfg-options {split}_dataloader.dataset.download=True)"


def _download(fetch: Callable[[], object]) -> str:
    """Runs ``fetch`` in one process while all others wait; returns what went wrong, on one line, or an empty string."""
    failure = ""
    if is_main_process():
        try:
            fetch()
        except (OSError, RuntimeError) as error:
            failure = f"the download failed ({one_line(error)}): try again"
    barrier()  # reached by every process, whatever it found on its disk
    return failure
