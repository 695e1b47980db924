"""Data sets of timm's readers, and of torchvision by timm's names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import PIL.Image
from mmengine.registry import DATASETS

from ..console import say
from ..errors import ConfigError, FBTError, nearest, one_line
from .file_dataset import STOP, DecodedDataset, check_on_error
from .image_dataset import NO_LABEL, TransformConfigs
from .image_files import printable, read_image, unreadable
from .label_files import in_order
from .shards import IMAGES, members, opened, shards_of

PREFIXES = ("folder", "torch", "hfds", "wds")
_STREAMS = {
    "tfds": "save it as shards ('wds/...') or as files",
    "hfids": "read it as 'hfds/...', which is the same data at any place",
}
"""Readers that give images in an order of their own, and what to do instead."""


class _Source(Protocol):
    """Where images come from, by position."""

    def opened(self, position: int) -> IO[bytes] | PIL.Image.Image: ...

    def name(self, position: int) -> str: ...


class _Found(NamedTuple):
    source: _Source
    labels: list[int]
    classes: list[str]
    paths: list[str]  # where images are files of their own


@DATASETS.register_module(name="timm")
class TimmDataset(DecodedDataset):
    """What timm's ``create_dataset`` reads, by the same names: images at any place, in the order of the data set.

    - ``""`` or ``"folder"``: a folder with one for each class (as timm numbers them), or a tar file of these;
    - ``"torch/cifar10"`` and so on: torchvision's;
    - ``"hfds/NAME"``: Hugging Face's ``datasets``, which must be installed;
    - ``"wds/"``: WebDataset's shards on this machine, indexed at the start; an image's class number is its ``.cls``.

    ``"tfds/"`` and ``"hfids/"`` are refused: they are streams, in which no image has a position, so that no run on
    them could be taken up exactly where it was.

    Args:
        name: which data set, with its prefix, as in timm; one of the above.
        root: folder of the data; of ``hfds`` that of its cache.
        split: name of the split, as timm's reader takes it.
        class_map: numbers of the classes, as in timm: a file of class names, or a dict.
        input_key, target_key: which columns or members are images and labels, for ``hfds`` and ``wds``.
        download: whether torchvision may download it.
        on_error: "skip" or "stop", as of `Images`. Files of folders are looked at in advance, and images elsewhere are
            not.
        transforms, seed: see `ImageDataset`.

    Raises:
        ConfigError: for a name that is none, or a stream.
        FBTError: for what is wrong with the data.
    """

    def __init__(
        self,
        name: str = "",
        root: str | None = None,
        split: str = "train",
        class_map: str | dict[str, int] | None = None,
        input_key: str | None = None,
        target_key: str | None = None,
        download: bool = False,
        on_error: str = "skip",
        transforms: TransformConfigs = (),
        seed: int = 0,
    ) -> None:
        check_on_error("timm", on_error)
        kind = _kind(name)
        given = {"input_key": input_key, "target_key": target_key}
        keys: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        folder = Path(root).expanduser() if root is not None else None
        try:
            if kind == "wds":
                found = _wds(folder, split, **keys)
            elif kind == "torch":
                found = _torch(name, folder, split, download)
            else:
                found = _reader(kind, name, folder, split, {**keys, "class_map": class_map})
        except FBTError:
            raise
        except Exception as error:  # timm's asserts, torchvision's RuntimeErrors, what datasets raises
            raise FBTError(f"timm: {name or 'folder'} ({root}, split {split!r}): {one_line(error)}") from error
        bad = unreadable(found.paths)
        if bad and on_error == STOP:
            raise FBTError(f"timm: {next(iter(bad.values()))}; mend or remove it, or set on_error='skip'")
        if bad:
            say(f"data     {name or root}: {len(bad):,} left out, such as {next(iter(bad.values()))}")
        self._positions = [position for position in range(len(found.labels)) if position not in bad]
        if not self._positions:
            raise FBTError(f"timm: {name or 'folder'} ({root}, split {split!r}) has no image that can be read")
        labels = [found.labels[position] for position in self._positions]
        self._source = found.source
        super().__init__(found.classes, labels, transforms, seed, on_error)

    @classmethod
    def describe(cls, transforms: TransformConfigs, **options: Any) -> tuple[int | None, tuple[int, int] | None]:
        _kind(options.get("name", ""))
        return super().describe(transforms, **options)

    def name_of(self, position: int) -> str:
        return self._source.name(self._positions[position])

    def content(self) -> Iterable[bytes]:
        """Names of the images: what is in them only reading all would tell."""
        for position in self._positions:
            yield f"{self._source.name(position)}\n".encode()

    def image(self, position: int) -> PIL.Image.Image:
        file = self._source.opened(self._positions[position])
        if isinstance(file, PIL.Image.Image):
            return file.convert("RGB")
        with file:
            return read_image(file, self.name_of(position))


def _kind(name: str) -> str:
    """The prefix of a name.

    Raises:
        ConfigError: if it is none that is read.
    """
    kind = name.partition("/")[0].lower() or "folder"
    if kind in _STREAMS:
        raise ConfigError(
            f"timm: {name!r} is read as a stream, in which no image has a position: a run on it could not be taken up "
            f"exactly; {_STREAMS[kind]}"
        )
    if kind not in PREFIXES:
        known = ", ".join(f"'{prefix}/...'" for prefix in PREFIXES)
        raise ConfigError(f"timm: no data set {name!r}{nearest(kind, PREFIXES)}; known are {known}")
    return kind


class _Shards:
    def __init__(self, found: Sequence[Any]) -> None:
        self.members = found

    def opened(self, position: int) -> IO[bytes]:
        return opened(self.members[position])

    def name(self, position: int) -> str:
        return printable(f"{self.members[position].shard}: {self.members[position].name}")


def _wds(root: Path | None, split: str, input_key: str = ";".join(IMAGES), target_key: str = "cls") -> _Found:
    if root is None or not root.is_dir():
        raise FBTError(f"timm: root={root} is no folder of shards; they are read from files on this machine")
    found = members(shards_of(root, split), input_key.lower().split(";"), target_key)
    labels = [member.label for member in found]
    return _Found(_Shards(found), labels, [str(number) for number in range(max(labels, default=-1) + 1)], [])


class _Torchvision:
    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def opened(self, position: int) -> PIL.Image.Image:
        return self.dataset[position][0]

    def name(self, position: int) -> str:
        samples = getattr(self.dataset, "samples", None) or getattr(self.dataset, "imgs", None)
        return printable(samples[position][0]) if samples else f"{type(self.dataset).__name__} image {position}"


def _torch(name: str, root: Path | None, split: str, download: bool) -> _Found:
    from timm.data import create_dataset

    dataset = create_dataset(name, root=str(root or "data"), split=split, download=download)
    if not hasattr(dataset, "targets"):
        raise FBTError(f"timm: {name!r} does not list its labels (targets), without which no split is drawn")
    labels = [int(label) for label in dataset.targets]
    classes = [str(c[0] if isinstance(c, tuple) else c) for c in getattr(dataset, "classes", ())]
    paths = [sample[0] for sample in getattr(dataset, "samples", ())]
    return _Found(_Torchvision(dataset), labels, classes or [str(n) for n in range(max(labels) + 1)], paths)


class _Reader:
    def __init__(self, reader: Any) -> None:
        self.reader = reader

    def opened(self, position: int) -> IO[bytes]:
        return self.reader[position][0]

    def name(self, position: int) -> str:
        name = self.reader.filename(position, absolute=True)
        return printable(name) if name else f"image {position}"


def _reader(kind: str, name: str, root: Path | None, split: str, options: dict[str, Any]) -> _Found:
    """Timm's own reader."""
    from timm.data.dataset_factory import _search_split
    from timm.data.readers import create_reader

    paths: list[str] = []
    if kind == "hfds":
        try:
            import datasets  # noqa: F401
        except ImportError:
            raise FBTError(f"timm: {name!r} needs Hugging Face's datasets: pip install datasets") from None
        reader = create_reader(name, root=str(root) if root else None, split=split, **options)
        given = list(reader.iter_targets())
    else:
        inner = name.partition("/")[2]
        root = root or (Path(inner).expanduser() if inner else None)
        if root is None or not root.exists():
            raise FBTError(f"timm: root={root} is no folder or tar file of images")
        if root.is_dir():
            reader = create_reader("", root=_search_split(str(root), split), **options)
            paths = [path for path, _ in reader.samples]
            given = [label for _, label in reader.samples]
        else:  # an archive that is kept open would be shared by worker processes, and its place in the file with it
            reader = create_reader("", root=str(root), cache_tarfiles=False, **options)
            given = [int(label) for label in reader.targets]
    numbers = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None) or {}
    if not given or set(numbers) == {""}:  # images that are in no folder have no class
        return _Found(_Reader(reader), [NO_LABEL] * len(given), [], paths)
    labels, classes = _numbered(given, {str(key): int(number) for key, number in numbers.items()})
    return _Found(_Reader(reader), labels, classes, paths)


def _numbered(given: Sequence[Any], numbers: dict[str, int]) -> tuple[list[int], list[str]]:
    """Class numbers, -1 where there is none, and names of the classes, from what a reader calls labels."""
    if any(isinstance(label, list | tuple) for label in given):
        raise FBTError("timm: its images have several labels each, which is not supported; set target_key")
    if any(isinstance(label, str) for label in given):
        names = in_order([str(label) for label in given if label is not None])
        numbers = {name: number for number, name in enumerate(names)}
        return [NO_LABEL if label is None else numbers[str(label)] for label in given], names
    labels = [NO_LABEL if label is None or int(label) < 0 else int(label) for label in given]
    names = [""] * (max(max(labels), *numbers.values(), -1) + 1) if numbers else [""] * (max(labels) + 1)
    for name, number in numbers.items():
        names[number] = name
    return labels, [name or str(number) for number, name in enumerate(names)]
