"""The data sets: Fashion-MNIST, its embedded part, and CIFAR."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import struct
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
import torchvision
from mmengine.registry import DATASETS

from fbt_plugins.data import (
    CIFAR10,
    CIFAR100,
    FashionMNIST,
    FashionMNISTMini,
    datasets,
    make_fashion_mnist_mini,
    stratified_order,
)
from fbt_plugins.data.fashion_mnist import EMBEDDED, FILES, SIZES, read_embedded, read_original
from fbt_plugins.errors import ConfigError, FBTError

UNREACHABLE = "http://127.0.0.1:9/"  # nothing listens on the discard port


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], str]]:
    """Serves a folder over http; returns its address."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers = []

    def start(folder: Path) -> str:
        handler = partial(QuietHandler, directory=str(folder))
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with four .gz files."""
    folder = tmp_path_factory.mktemp("fashion")
    for source, splits in (("train", ("train", "val")), ("test", ("test",))):
        images = np.zeros((SIZES[source], 28, 28), np.uint8)
        labels = np.zeros(SIZES[source], np.uint8)
        for split in splits:
            known = read_embedded(split)
            images[known.indices], labels[known.indices] = known.images.numpy(), known.labels.numpy()
        for name, array in zip(FILES[source], (images, labels), strict=True):
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array), compresslevel=1))
    return folder


def test_some_images_keep_their_labels() -> None:
    """Always the same ones, in equal parts of all classes; without any there are no classes either."""
    whole, some = FashionMNISTMini("train"), FashionMNISTMini("train", labelled=500)
    kept = [label for label in some.labels if label >= 0]
    assert len(some) == 5000 and some.num_labelled == 500 and some.classes == whole.classes
    assert [kept.count(number) for number in range(10)] == [50] * 10
    assert all(a in (b, -1) for a, b in zip(some.labels, whole.labels, strict=True))
    assert some.labels == FashionMNISTMini("train", labelled=500, seed=1).labels and some[7]["labels"] == some.labels[7]
    none = FashionMNISTMini("train", labelled=0)
    assert none.num_labelled == 0 and none.classes == () and len(none) == 5000
    assert FashionMNISTMini.describe((), split="train", labelled=0) == (0, (28, 28))
    assert FashionMNISTMini.describe((), split="train", labelled=5) == (10, (28, 28))
    for wrong in (5001, -1, True, 0.5):
        with pytest.raises(ConfigError, match=f"labelled is 0 to 5000 here, not {wrong}"):
            FashionMNISTMini("train", labelled=wrong)  # type: ignore[arg-type]


def test_fashion_splits(fashion: Path) -> None:
    train, val, test = (FashionMNIST(split, str(fashion)) for split in ("train", "val", "test"))
    assert [len(train), len(val), len(test)] == [59_000, 1000, 10_000]
    mini = FashionMNISTMini("val")
    assert torch.equal(val.images, mini.images) and val.labels == mini.labels
    assert train.images.any(dim=2).any(dim=1).sum() == 5000  # of those that are not blank, all but the held-out ones
    assert test[0]["inputs"].shape == (3, 28, 28) and test.image_size == (28, 28)


def test_fashion_may_hold_out_more_but_nothing_that_mini_trains_on(fashion: Path) -> None:
    train, val = (FashionMNIST(split, str(fashion), validation=2000) for split in ("train", "val"))
    assert [len(train), len(val)] == [58_000, 2000]
    assert train.images.any(dim=2).any(dim=1).sum() == 5000  # what is not blank is mini's, and none of it is held out
    assert val.images.any(dim=2).any(dim=1).sum() == 1000
    for wrong in (999, 55_001):
        with pytest.raises(ConfigError, match=f"FashionMNIST: validation is 1000 to 55000, got {wrong}"):
            FashionMNIST("val", str(fashion), validation=wrong)


def test_fashion_unpacked_in_torchvisions_layout(fashion: Path, tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name in FILES["test"]:
        (raw / name).write_bytes(gzip.decompress((fashion / f"{name}.gz").read_bytes()))
    assert len(FashionMNIST("test", str(tmp_path))) == 10_000


def test_fashion_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FBTError) as caught:
        FashionMNIST("val")
    message = str(caught.value)
    for part in (
        "no train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz in ",
        f"{tmp_path}/data/FashionMNIST/raw or {tmp_path}/data;",
        "download=True",
        "--cfg-options val_dataloader.dataset.download=True",
        "/usr/share/datasets/fashion-mnist",
    ):
        assert part in message
    assert "\n" not in message


def test_fashion_download(
    fashion: Path, tmp_path: Path, serve: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", [UNREACHABLE])
    with pytest.raises(FBTError, match=r"no t10k-images.* in .*; the download failed .*refused") as caught:
        FashionMNIST("test", str(tmp_path), download=True)
    assert "\n" not in str(caught.value)
    names = [f"{name}.gz" for source in FILES.values() for name in source]
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", [serve(fashion)])
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "resources", [(n, md5(fashion / n)) for n in names])
    assert len(FashionMNIST("test", str(tmp_path), download=True)) == 10_000
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", [UNREACHABLE])
    assert len(FashionMNIST("test", str(tmp_path), download=True)) == 10_000  # nothing is downloaded twice


def test_fashion_damaged(fashion: Path, tmp_path: Path) -> None:
    images, labels = FILES["test"]
    (tmp_path / f"{labels}.gz").write_bytes((fashion / f"{labels}.gz").read_bytes())
    packed = (fashion / f"{images}.gz").read_bytes()
    unpacked = gzip.decompress(packed)
    for name, content in (
        (f"{images}.gz", packed[: len(packed) // 2]),
        (f"{images}.gz", b"<html>404</html>"),
        (images, unpacked[:-1]),
        (images, unpacked[:8] + b"\xff" + unpacked[9:]),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FBTError, match="delete it and get it again") as caught:
            FashionMNIST("test", str(tmp_path))
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)
        (tmp_path / name).unlink()


def test_mnist_is_not_taken_for_fashion_mnist(fashion: Path, tmp_path: Path) -> None:
    images, labels = FILES["test"]
    (tmp_path / labels).write_bytes(gzip.decompress((fashion / f"{labels}.gz").read_bytes()))
    (tmp_path / images).write_bytes(idx(np.ones((10_000, 28, 28), np.uint8)))
    with pytest.raises(FBTError, match="not those of Fashion-MNIST"):
        FashionMNIST("test", str(tmp_path))


class Python2Pickler(pickle.Pickler):
    """The data type as Python 2 and old numpy wrote it into the genuine files."""

    def reducer_override(self, value: object) -> object:
        if isinstance(value, np.dtype):
            return np.dtype, ("u1", 0, 1), (3, "|", None, None, None, -1, -1, 0)
        return NotImplemented


@pytest.fixture(params=[CIFAR10, CIFAR100])
def cifar(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[type[CIFAR10], Path]:
    """A data set and its root: five images of each of four classes in each file."""
    source = request.param.source
    folder = tmp_path / source.base_folder
    folder.mkdir()
    key = "labels" if request.param is CIFAR10 else "fine_labels"
    for number, (name, _) in enumerate([*source.train_list, *source.test_list]):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 3072), np.uint8)
        with (folder / name).open("wb") as file:
            Python2Pickler(file, 2).dump({"data": pixels, key: [0, 1, 2, 3] * 5})
    (folder / source.meta["filename"]).write_bytes(pickle.dumps({source.meta["key"]: ["cat", "dog", "elk", "fly"]}, 2))
    for table in ("train_list", "test_list"):
        monkeypatch.setattr(source, table, [[name, md5(folder / name)] for name, _ in getattr(source, table)])
    monkeypatch.setattr(source, "meta", source.meta | {"md5": md5(folder / source.meta["filename"])})
    return request.param, tmp_path


@pytest.mark.filterwarnings("error")
def test_cifar_splits(cifar: tuple[type[CIFAR10], Path]) -> None:
    kind, root = cifar
    count = 20 * len(kind.source.train_list)
    train, val, test = (kind(split, str(root), validation=8) for split in ("train", "val", "test"))
    assert [len(train), len(val), len(test)] == [count - 8, 8, 20]
    assert torch.bincount(torch.tensor(val.labels)).tolist() == [2, 2, 2, 2]
    pixels = [{bytes(image.numpy()) for image in data.images} for data in (train, val)]
    assert len(pixels[0] | pixels[1]) == count
    assert torch.equal(val.images, kind("val", str(root), validation=8, seed=5).images)
    assert len(kind("train", str(root), validation=0)) == count
    assert train.classes == ("cat", "dog", "elk", "fly") and train.metainfo["name"] == kind.__name__
    original = torchvision.datasets.__dict__[kind.__name__](root, train=False)
    for position in (0, 13):
        expected = torch.from_numpy(original.data[position]).permute(2, 0, 1)
        assert torch.equal(test[position]["inputs"], expected) and test.labels[position] == original.targets[position]


def test_cifar_refuses_an_impossible_validation(cifar: tuple[type[CIFAR10], Path]) -> None:
    kind, root = cifar
    for split, validation in (("val", 0), ("train", 1000), ("train", -1)):
        with pytest.raises(ConfigError, match=f"{kind.__name__}: validation is .* got {validation}"):
            kind(split, str(root), validation=validation)


def test_cifar_damaged_and_missing(cifar: tuple[type[CIFAR10], Path]) -> None:
    kind, root = cifar
    name = kind.source.train_list[0][0]
    folder = root / kind.source.base_folder
    (folder / name).write_bytes(b"broken")
    with pytest.raises(FBTError, match=rf"{kind.__name__}: {name} in {folder} damaged .*download=True"):
        kind("test", str(root))
    (folder / name).unlink()
    with pytest.raises(FBTError, match=rf"{kind.__name__}: no {name} in {folder}; .*download=True") as caught:
        kind("test", str(root))
    assert "\n" not in str(caught.value) and kind.source.filename in str(caught.value)


def test_cifar_download(
    cifar: tuple[type[CIFAR10], Path], tmp_path: Path, serve: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, root = cifar
    archive = root / "remote.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(root / kind.source.base_folder, kind.source.base_folder)
    monkeypatch.setattr(kind.source, "tgz_md5", md5(archive))
    monkeypatch.setattr(kind.source, "url", UNREACHABLE)
    empty = tmp_path / "empty"
    with pytest.raises(FBTError, match=r"in .*; the download failed .*refused") as caught:
        kind("test", str(empty), download=True)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(kind.source, "url", serve(root) + archive.name)
    assert len(kind("test", str(empty), download=True)) == 20


def test_only_one_process_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(datasets, "barrier", lambda: done.append("waited"))
    for main in (True, False):
        monkeypatch.setattr(datasets, "is_main_process", lambda main=main: main)
        datasets._download(lambda: done.append("fetched"))
    assert done == ["fetched", "waited", "waited"]


def test_unknown_split() -> None:
    with pytest.raises(ConfigError, match="FashionMNISTMini: no split 'valid'; did you mean 'val'"):
        FashionMNISTMini("valid")


# ---- fashion mnist --------------------------------------------------------------------------------------------------


ORIGINALS = Path(os.environ.get("FBT_FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
needs_originals = pytest.mark.skipif(
    not ORIGINALS.is_dir(),
    reason=f"no original Fashion-MNIST in {ORIGINALS}; set FBT_FASHION_MNIST to a folder with it",
)
PER_CLASS = {"train": 500, "val": 100, "test": 200}


@pytest.mark.parametrize("split", PER_CLASS)
def test_counts_and_stratification(split: str) -> None:
    images, labels, indices = read_embedded(split)
    count = 10 * PER_CLASS[split]
    assert images.shape == (count, 28, 28) and images.dtype == torch.uint8
    assert torch.bincount(labels, minlength=10).tolist() == [PER_CLASS[split]] * 10
    assert indices.shape == (count,) and (indices.diff() > 0).all()
    assert indices.min() >= 0 and indices.max() < (10_000 if split == "test" else 60_000)


def test_no_image_is_in_two_splits() -> None:
    positions = [set(read_embedded(split).indices.tolist()) for split in ("train", "val")]
    assert not positions[0] & positions[1]
    pixels = [{bytes(image.numpy()) for image in read_embedded(split).images} for split in PER_CLASS]
    assert len(set.union(*pixels)) == 8000


def test_file_is_small_and_has_its_licence_beside_it() -> None:
    folder = resources.files("fbt_plugins.data") / "embedded"
    assert len((folder / EMBEDDED).read_bytes()) < 4_000_000
    licence = (folder / "LICENSE.fashion-mnist").read_text(encoding="utf-8")
    assert "Copyright (c) 2017 Zalando SE" in licence and "Permission is hereby granted, free of charge" in licence


def test_sample_and_metainfo() -> None:
    data = DATASETS.build({"type": "FashionMNISTMini", "split": "val"})
    images, labels, _ = read_embedded("val")
    sample = data[7]
    assert torch.equal(sample["inputs"], images[7].expand(3, -1, -1)) and sample["inputs"].dtype == torch.uint8
    assert (sample["labels"], sample["index"]) == (labels[7].item(), 7) and data.labels[7] == labels[7]
    assert data.metainfo == {"name": "FashionMNISTMini", "classes": data.classes}
    assert len(data) == 1000 and data.classes[9] == "Ankle boot" and data.image_size == (28, 28)


def test_samples_are_copies() -> None:
    data = FashionMNISTMini("val")
    before = data[0]["inputs"].clone()
    data[0]["inputs"].zero_()
    assert torch.equal(data[0]["inputs"], before)


def test_stratified_order_has_the_proportions_in_every_beginning() -> None:
    labels = [0] * 60 + [1] * 30 + [2] * 10
    order = stratified_order(labels)
    assert sorted(order) == list(range(100)) and order != stratified_order(labels, seed=1)
    for end in range(10, 101, 10):
        counts = [sum(labels[position] == c for position in order[:end]) for c in range(3)]
        assert all(abs(count - share * end) <= 1 for count, share in zip(counts, (0.6, 0.3, 0.1), strict=True))


def test_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(FashionMNISTMini("train")) == 5000


def test_script_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_fashion_mnist_mini.main(["--root", str(tmp_path), "--out", str(tmp_path / "mini.npz")]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "train-images-idx3-ubyte.gz" in message and str(tmp_path) in message


@needs_originals
def test_embedded_images_are_the_originals() -> None:
    for split, source in (("train", "train"), ("val", "train"), ("test", "test")):
        images, labels, indices = read_embedded(split)
        original = read_original(ORIGINALS, source)
        assert torch.equal(original.images[indices], images) and torch.equal(original.labels[indices], labels)


@needs_originals
def test_full_data_set_from_the_originals() -> None:
    sizes = [len(FashionMNIST(split, str(ORIGINALS))) for split in ("train", "val", "test")]
    assert sizes == [59_000, 1000, 10_000]


@needs_originals
@pytest.mark.slow
def test_remaking_gives_the_same_bytes(tmp_path: Path) -> None:
    paths = [tmp_path / "first.npz", tmp_path / "second.npz"]
    for path in paths:
        assert make_fashion_mnist_mini.main(["--root", str(ORIGINALS), "--out", str(path)]) == 0
    assert paths[0].read_bytes() == paths[1].read_bytes()
    embedded = resources.files("fbt_plugins.data") / "embedded" / EMBEDDED
    with resources.as_file(embedded) as file:
        made, kept = np.load(paths[0]), np.load(file)
        assert made.files == kept.files and all(np.array_equal(made[name], kept[name]) for name in kept.files)
