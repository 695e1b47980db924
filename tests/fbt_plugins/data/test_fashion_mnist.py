"""The embedded data set: what is in it, and that it is what its script makes of the originals."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS

from fbt_plugins.data import FashionMNIST, FashionMNISTMini, make_fashion_mnist_mini, stratified_order
from fbt_plugins.data.fashion_mnist import EMBEDDED, read_embedded, read_original

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
