"""ImageFolder on a few tiny files."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fbt_plugins.data import ImageFolder
from fbt_plugins.errors import ConfigError, FBTError

CROP = ({"type": "Resize", "size": [8, 8]},)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, classes in (("train", ("ant", "bee", "cow")), ("val", ("bee", "cow"))):
        for name in classes:
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number in range(2):
                pixels = np.random.default_rng(number).integers(0, 256, (10, 12, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    Image.new("L", (9, 9), 77).save(tmp_path / "train" / "ant" / "2.png")
    return tmp_path


def test_splits_share_the_numbers_of_the_classes(root: Path) -> None:
    train, val = ImageFolder("train", str(root), CROP), ImageFolder("val", str(root), CROP)
    assert train.classes == val.classes == ("ant", "bee", "cow")
    assert train.labels == [0, 0, 0, 1, 1, 2, 2] and val.labels == [1, 1, 2, 2]
    assert train.image_size == (8, 8) and len(val) == 4


def test_images_become_uint8_tensors_of_three_channels(root: Path) -> None:
    data = ImageFolder("train", str(root))
    assert data.image_size == (10, 12)
    expected = np.random.default_rng(1).integers(0, 256, (10, 12, 3), np.uint8)
    assert torch.equal(data[1]["inputs"], torch.from_numpy(expected).permute(2, 0, 1))
    grey = data[2]["inputs"]
    assert grey.shape == (3, 9, 9) and grey.dtype == torch.uint8 and (grey == 77).all()


def test_fingerprints_are_of_names_and_sizes_wherever_the_folder_is(root: Path, tmp_path: Path) -> None:
    first = ImageFolder("train", str(root)).fingerprint()
    shutil.copytree(root / "train", tmp_path / "elsewhere" / "train")
    assert ImageFolder("train", str(tmp_path / "elsewhere")).fingerprint() == first
    path = tmp_path / "elsewhere" / "train" / "ant" / "0.png"
    path.rename(path.with_name("00.png"))
    assert ImageFolder("train", str(tmp_path / "elsewhere")).fingerprint() != first
    with (root / "train" / "ant" / "0.png").open("ab") as file:
        file.write(b" ")
    assert ImageFolder("train", str(root)).fingerprint() != first


def test_missing_folders(root: Path) -> None:
    with pytest.raises(FBTError, match=rf"no folder {root}/test; split 'test' is images such as {root}/test/CLASS"):
        ImageFolder("test", str(root))
    (root / "test").mkdir()
    with pytest.raises(FBTError, match=r"ImageFolder: .*class folder"):
        ImageFolder("test", str(root))
    (root / "test" / "ant").mkdir()
    with pytest.raises(FBTError, match="no valid file for the classes ant"):
        ImageFolder("test", str(root))


def test_class_that_train_has_not(root: Path) -> None:
    (root / "val" / "bees").mkdir()
    with pytest.raises(FBTError, match=r"has no class 'bees', .*did you mean 'bee'"):
        ImageFolder("val", str(root))


def test_damaged_image_is_named(root: Path) -> None:
    data = ImageFolder("val", str(root), CROP)
    path = root / "val" / "cow" / "1.png"
    for content in (b"no image", path.read_bytes()[:60]):
        path.write_bytes(content)
        with pytest.raises(FBTError, match=f"{path} is no readable image"):
            data[3]


def test_transforms_that_cannot_work_are_found_at_once(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"ImageFolder.transforms fail on the first image"):
        ImageFolder("val", str(root), [{"type": "RandomCrop", "size": 64}])
    with pytest.raises(ConfigError, match=r"\(1, 10, 12\); expected \(3, H, W\)"):
        ImageFolder("val", str(root), [{"type": "Grayscale"}])
