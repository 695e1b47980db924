"""Transforms by name: what they make of an image, and what they answer to a mistake.

Then: ImageFolder on a few tiny files.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.registry import TRANSFORMS
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from fbt_plugins.data import ImageFolder, batched_transforms, build_transforms, seeded
from fbt_plugins.data.image_files import read_image
from fbt_plugins.errors import ConfigError, FBTError

IMAGE = torch.arange(3 * 32 * 32).view(3, 32, 32).mul(7).remainder(256).to(torch.uint8)


def test_no_transforms_leave_an_image_as_it_is() -> None:
    transform = build_transforms([], "here")
    assert torch.equal(transform(IMAGE), IMAGE)
    pil = Image.fromarray(IMAGE.permute(1, 2, 0).numpy())
    assert torch.equal(transform(pil), IMAGE)


def test_torchvision_by_name() -> None:
    transform = build_transforms(
        [
            {"type": "Pad", "padding": 4},
            {"type": "RandomHorizontalFlip", "p": 1.0},
            {"type": "Resize", "size": [20, 24], "interpolation": "bicubic"},
        ],
        "here",
    )
    assert transform(IMAGE).shape == (3, 20, 24) and transform(IMAGE).dtype == torch.uint8
    nested = build_transforms(
        [{"type": "RandomApply", "p": 1.0, "transforms": [{"type": "RandomHorizontalFlip", "p": 1.0}]}], "here"
    )
    assert torch.equal(nested(IMAGE), IMAGE.flip(-1))


def test_a_transform_of_a_plugin_by_its_name() -> None:
    @TRANSFORMS.register_module()
    class Darker:
        def __init__(self, by: int = 10) -> None:
            self.by = by

        def __call__(self, image: Tensor) -> Tensor:
            return (image.int() - self.by).clamp(0).to(torch.uint8)

    try:
        image = torch.full((3, 4, 4), 100, dtype=torch.uint8)
        config = dict(type="Darker", by=30)
        applied = [dict(type="Resize", size=2), dict(type="RandomApply", p=1.0, transforms=[config])]
        assert torch.equal(build_transforms(applied, "x")(image), torch.full((3, 2, 2), 70, dtype=torch.uint8))
        with pytest.raises(ConfigError, match=r"x\[0\] Darker: no argument 'bye'; did you mean 'by'"):
            build_transforms([dict(type="Darker", bye=30)], "x")
        with pytest.raises(ConfigError, match=r"has no 'Daker'; did you mean 'Darker'"):
            build_transforms([dict(type="Daker")], "x")
        with pytest.raises(ConfigError, match="in_memory=True augments whole batches, which Darker cannot"):
            batched_transforms([config], "x")
    finally:
        del TRANSFORMS.module_dict["Darker"]


def test_all_mistakes_are_reported_together_with_their_place() -> None:
    with pytest.raises(ConfigError) as caught:
        build_transforms(
            [
                {"type": "RandomCorp", "size": 32},
                {"type": "RandomCrop", "siz": 32},
                {"type": "RandomHorizontalFlip", "p": 7},
                {"type": "Resize", "size": 8, "interpolation": "bicubi"},
                {"size": 3},
                {"type": "RandomApply", "transforms": [{"type": "Padd", "padding": 1}]},
                {"type": "timm", "inputsize": 224},
                {"type": "Pad", "padding": 1},
            ],
            "CIFAR100.transforms",
        )
    lines = caught.value.problems
    starts = [
        "CIFAR100.transforms[0]: torchvision.transforms.v2 has no 'RandomCorp'; did you mean 'RandomCrop'",
        "CIFAR100.transforms[1] RandomCrop: no argument 'siz'; did you mean 'size'",
        "CIFAR100.transforms[1] RandomCrop: argument 'size' is missing",
        "CIFAR100.transforms[2] RandomHorizontalFlip: ",
        "CIFAR100.transforms[3] Resize: ",
        "CIFAR100.transforms[4]: expected a dict with a 'type', got {'size': 3}",
        "CIFAR100.transforms[5].transforms[0]: torchvision.transforms.v2 has no 'Padd'; did you mean 'Pad'",
        "CIFAR100.transforms[6] timm: no argument 'inputsize'; did you mean 'input_size'",
    ]
    assert len(lines) == len(starts)
    assert all(line.startswith(start) and "\n" not in line for line, start in zip(lines, starts, strict=True)), lines


@pytest.mark.parametrize("configs", [{"type": "Pad"}, "Pad", None])
def test_not_a_list(configs: object) -> None:
    with pytest.raises(ConfigError, match="here: expected a list of dicts"):
        build_transforms(configs, "here")  # type: ignore[arg-type]


def test_timm_evaluation_is_exact() -> None:
    transform = build_transforms([{"type": "timm", "input_size": 32, "crop_pct": 1.0}], "here")
    assert torch.equal(transform(IMAGE), IMAGE)


@pytest.mark.parametrize("mode", ["const", "pixel"])
def test_timm_erases_as_on_normalised_images(mode: str) -> None:
    config = {"type": "timm", "input_size": 32, "is_training": True, "color_jitter": None, "re_mode": mode}
    plain, erasing = (build_transforms([config | {"re_prob": p}], "here") for p in (0.0, 1.0))
    changed = total = 0
    for seed in range(10):
        with seeded(seed):
            expected = plain(IMAGE)
        with seeded(seed):
            erased = erasing(IMAGE)
        assert erased.dtype == torch.uint8
        where = (erased != expected).any(dim=0)
        changed, total = changed + int(where.sum()), total + where.numel()
        if mode == "const":
            colour = torch.tensor(IMAGENET_DEFAULT_MEAN).mul(255).round().to(torch.uint8)
            assert torch.equal(erased[:, where], colour.view(3, 1).expand(-1, int(where.sum())))
        else:
            assert erased[:, where].float().std() > 30
    assert 0.02 < changed / total < 0.34  # between timm's smallest and largest area: the rest is untouched


@pytest.mark.parametrize("argument", ["normalize", "use_prefetcher", "separate"])
def test_timm_arguments_that_change_the_output(argument: str) -> None:
    with pytest.raises(ConfigError, match=rf"here\[0\] timm: no '{argument}' here"):
        build_transforms([{"type": "timm", argument: True}], "here")


def test_timm_augmentation_without_training_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="'auto_augment', 're_prob' without is_training=True would be ignored"):
        build_transforms([{"type": "timm", "auto_augment": "rand-m9", "re_prob": 0.2}], "here")


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "augmix-m9-mstd0.5", "original-mstd0.5", "v0"])
def test_timms_strongest_posterizing_keeps_one_bit(policy: str) -> None:
    (step,) = build_transforms(
        [dict(type="timm", input_size=8, is_training=True, auto_augment=policy)], "t"
    ).transforms[:1]
    (augment,) = [t for t in step.transform.transforms if hasattr(t, "ops") or hasattr(t, "policy")]
    operations = getattr(augment, "ops", None) or [o for part in augment.policy for o in part]
    posterizing = [o for o in operations if o.name.startswith("Posterize")]
    assert posterizing or policy.startswith("augmix")
    image = to_pil_image(torch.full((3, 8, 8), 200, dtype=torch.uint8))
    for operation in posterizing:
        assert operation.aug_fn(image, 0).getpixel((0, 0)) == (128, 128, 128)  # its highest bit alone
        assert operation.aug_fn(image, 2).getpixel((0, 0)) == (192, 192, 192)


@pytest.mark.slow
def test_the_policy_of_the_papers_recipes_can_be_drawn_20000_times() -> None:
    config = dict(type="timm", input_size=8, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.25)
    transform = build_transforms([config], "t")
    image = torch.full((3, 8, 8), 200, dtype=torch.uint8)
    for number in range(20_000):
        with seeded(number):
            assert transform(image).shape == (3, 8, 8)


@pytest.mark.parametrize("name", ["Normalize", "LinearTransformation"])
def test_images_are_not_normalised_twice(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"t\[1\] {name}: drop it: each model normalises images in \[0, 1\] itself"):
        build_transforms([dict(type="ToTensor"), dict(type=name, mean=(0.5,), std=(0.5,))], "t")
    with pytest.raises(ConfigError, match=rf"t\[0\].transforms\[0\] {name}: drop it"):
        build_transforms([dict(type="RandomApply", transforms=[dict(type=name)])], "t")


def test_no_functions_in_a_config() -> None:
    with pytest.raises(ConfigError, match=r"t\[0\] Lambda: a config holds no functions: do it in a data set"):
        build_transforms([dict(type="Lambda", lambd=str)], "t")


# ---- image folder ---------------------------------------------------------------------------------------------------


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
    with pytest.raises(FBTError, match="has no image for the classes ant: add some, or remove them"):
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


def pixels(path: Path, image: Image.Image, **options: Any) -> np.ndarray[Any, Any]:
    """What is read of an image that was saved there."""
    image.save(path, **options)
    return np.asarray(read_image(path))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bits_are_scaled_to_eight(name: str, tmp_path: Path) -> None:
    stored = np.array([[0, 300, 30000, 61680, 65535]], np.uint16)
    found = pixels(tmp_path / name, Image.fromarray(stored))
    assert found.shape == (1, 5, 3) and found[0, :, 1].tolist() == [0, 1, 117, 240, 255]


def test_floating_point_is_from_0_to_1_and_nothing_else_is_guessed(tmp_path: Path) -> None:
    found = pixels(tmp_path / "a.tif", Image.fromarray(np.array([[0, 0.5, 1]], np.float32)))
    assert found[0, :, 0].tolist() == [0, 128, 255]
    for values in ([0, 3], [-1, 0.5], [0, np.nan]):
        Image.fromarray(np.array([values], np.float32)).save(tmp_path / "b.tif")
        with pytest.raises(FBTError, match=r"b.tif: floating-point pixels from .*; expected 0 to 1: save it with 8"):
            read_image(tmp_path / "b.tif")
    Image.fromarray(np.array([[5, 70000]], np.int32)).save(tmp_path / "c.tif")
    with pytest.raises(FBTError, match=r"c.tif: pixels from 5 to 70000; expected 0 to 65535"):
        read_image(tmp_path / "c.tif")


def test_images_are_turned_as_their_orientation_says(tmp_path: Path) -> None:
    stored = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    exif = Image.Exif()
    exif[274] = 6  # the first row is at the right
    assert pixels(tmp_path / "a.png", stored, exif=exif)[:, :, 0].tolist() == [[3, 0], [4, 1], [5, 2]]


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.avif", "a.bmp", "a.tiff", "a.JPEG", "a.jp2", "a.png"])
def test_whatever_pillow_reads_is_found_and_read(name: str, tmp_path: Path) -> None:
    if not Image.init() and Path(name).suffix.lower() not in Image.registered_extensions():
        pytest.skip("not in this Pillow")
    folder = tmp_path / "train" / "ant"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8), (200, 100, 50)).save(folder / name)
    colour = ImageFolder("train", str(tmp_path))[0]["inputs"][:, 4, 4].int()
    assert (colour - torch.tensor([200, 100, 50])).abs().max() <= 6


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA", "CMYK", "1"])
def test_every_mode_is_read_as_rgb(mode: str, tmp_path: Path) -> None:
    white = Image.new("RGB", (2, 2), "white")
    found = pixels(tmp_path / "a.tif", white.convert("L").convert("LA") if mode == "LA" else white.convert(mode))
    assert found.shape == (2, 2, 3) and (found == 255).all()


def test_a_bomb_is_one_line_that_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (30, 30)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    with pytest.raises(FBTError, match=r"a.png is too large an image .*900 pixels.*: make it smaller, or remove it"):
        read_image(tmp_path / "a.png")


def test_what_systems_and_users_leave_in_folders_is_left_out_and_said(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = ImageFolder("train", str(root), CROP)
    assert capsys.readouterr().out == ""
    for folder in (root / "train", root / "val"):
        for name in (".ipynb_checkpoints", "__MACOSX", "bee/.ipynb_checkpoints"):
            (folder / name).mkdir()
            shutil.copy(root / "train" / "ant" / "0.png", folder / name / "0.png")
    for name in ("._0.png", ".DS_Store", "notes.txt", "x.heic", "y.heic"):
        (root / "train" / "ant" / name).write_bytes(b"no image")
    train = ImageFolder("train", str(root), CROP)
    assert train.paths == before.paths and train.classes == before.classes == ("ant", "bee", "cow")
    said = capsys.readouterr().out
    assert "left out 2 .heic, 1 .txt, 3 hidden, such as" in said and said.count("\n") == 1
    assert ImageFolder("val", str(root), CROP).classes == train.classes


def test_a_class_without_images_is_refused_in_train_and_said_elsewhere(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "val" / "ant").mkdir()
    assert ImageFolder("val", str(root), CROP).labels == [1, 1, 2, 2]
    assert "no image for 1 of 3 classes, such as ant" in capsys.readouterr().out
    (root / "train" / "dog").mkdir()
    (root / "train" / "dog" / "a.heic").write_bytes(b"")
    with pytest.raises(FBTError, match=r"no image for the classes dog \(left out: 1 .heic, such as .*a.heic\)"):
        ImageFolder("train", str(root), CROP)


def test_transforms_that_cannot_work_are_found_at_once(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"ImageFolder.transforms fail on the first image"):
        ImageFolder("val", str(root), [{"type": "RandomCrop", "size": 64}])
    with pytest.raises(ConfigError, match=r"\(1, 10, 12\); expected \(3, H, W\)"):
        ImageFolder("val", str(root), [{"type": "Grayscale"}])


SIZES: list[tuple[list[dict[str, Any]], tuple[int, int] | None]] = [
    ([dict(type="Resize", size=(64, 48))], (64, 48)),
    ([dict(type="Resize", size=72), dict(type="CenterCrop", size=64)], (64, 64)),
    ([dict(type="RandomResizedCrop", size=64)], (64, 64)),
    ([dict(type="timm", input_size=64)], (64, 64)),
    ([dict(type="Resize", size=64)], None),  # the shorter side alone
    ([], None),
]


@pytest.mark.parametrize(("transforms", "size"), SIZES)
def test_sizes_are_those_of_fixed_transforms_or_of_the_first_image(
    transforms: list[dict[str, Any]], size: tuple[int, int] | None, root: Path
) -> None:
    assert ImageFolder.describe(transforms, split="train", root="/nowhere") == (None, size)
    classes, found = ImageFolder.describe(transforms, split="train", root=str(root))
    assert classes == 3 and found == ImageFolder("train", str(root), transforms).image_size
    assert size in (None, found)


def test_sizes_of_turned_images(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    (tmp_path / "train" / "ant").mkdir(parents=True)
    Image.new("RGB", (30, 20)).save(tmp_path / "train" / "ant" / "0.jpg", exif=exif)
    size = ImageFolder.describe((), root=str(tmp_path))[1]
    assert size == ImageFolder("train", str(tmp_path)).image_size == (30, 20)
