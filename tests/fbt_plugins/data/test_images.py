"""Any folder of images: odd files, links, names; labels for some; what turns out unreadable."""

from __future__ import annotations

import os
import struct
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.features
import PIL.Image
import pytest
from runs import assert_same, builder, curve, run, run_until

from fbt_plugins.data import FashionMNISTMini, Images
from fbt_plugins.data.image_files import list_images, read_image, unreadable
from fbt_plugins.engine.check import check_config
from fbt_plugins.engine.loaders import data_info, open_splits
from fbt_plugins.errors import ConfigError, FBTError

RESIZE = [dict(type="Resize", size=(8, 8))]


def picture(seed: int = 0, size: tuple[int, int] = (9, 12)) -> PIL.Image.Image:
    """Smooth, so that lossy formats keep it nearly."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    pixels = np.stack([rows * 20 + seed, columns * 15, rows * 5 + columns * 5 + 3 * seed], -1)
    return PIL.Image.fromarray((pixels % 256).astype(np.uint8))


def array(image: PIL.Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels: np.ndarray, colour: int, depth: int, *extra: bytes) -> bytes:
    """A PNG written by hand: (H, W, C) or (H, W), big-endian where it has 16 bits."""
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], depth, colour, 0, 0, 0)
    body = b"".join(extra) + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")


def broken_middle(stored: bytes) -> bytes:
    """With its header and its end, and other bytes between them."""
    middle = len(stored) // 2
    return stored[:middle] + bytes(byte ^ 0x55 for byte in stored[middle : middle + 8]) + stored[middle + 8 :]


@pytest.fixture
def odd(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray], set[str]]:
    """A folder, the pixels that each readable file has by an independent reading, and the names of those without."""
    root, plain = tmp_path / "photos", picture()
    (root / "a" / "ünï" / "日本").mkdir(parents=True)
    (root / "__MACOSX").mkdir()
    expected, bad = {}, set()
    pixels = np.asarray(plain)

    def add(name: str, write: Callable[[Path], object] | bytes, reading: np.ndarray | None) -> None:
        path = root / name
        if isinstance(write, bytes):
            path.write_bytes(write)
        else:
            write(path)
        if reading is None:
            bad.add(name)
        else:
            expected[name] = np.asarray(reading).astype(int)

    whole = (root / "a" / "0.png", root / "a" / "0.JPG")
    add("a/0.png", plain.save, pixels)
    add("a/0.JPG", lambda path: plain.save(path, quality=100, subsampling=0), pixels)
    add("a/really a png.jpeg", whole[0].read_bytes(), pixels)
    add("a/noending", whole[0].read_bytes(), pixels)
    add("a/4.5 years", whole[1].read_bytes(), pixels)
    add("a/ünï/日本/Ω क 😀.PNG", whole[0].read_bytes(), pixels)
    add("a/new\nline [red].png", whole[0].read_bytes(), pixels)
    for name in ("b.bmp", "b.tif", "b.tga", "b.pcx", "b.ppm", "b.TIFF", "b.dib"):
        add(name, lambda path: plain.save(path, {"TGA": "TGA"}.get(path.suffix[1:].upper())), pixels)
    if PIL.features.check("webp"):
        add("w.webp", lambda path: plain.save(path, lossless=True), pixels)
        frames = [picture(9), picture(40)]
        add("animated.webp", lambda p: plain.save(p, save_all=True, append_images=frames, lossless=True), pixels)
    few = plain.quantize(16)
    of_few = np.asarray(few.getpalette(), np.uint8).reshape(-1, 3)[np.asarray(few)]
    add("palette.png", few.save, of_few)
    add("palette transparent.png", lambda path: few.save(path, transparency=3), of_few)
    add("palette.gif", few.save, of_few)
    add("animated.gif", lambda p: few.save(p, save_all=True, append_images=[picture(50).quantize(16)]), of_few)
    add("animated.png", lambda p: plain.save(p, save_all=True, append_images=[picture(50)]), pixels)
    alpha = np.dstack([pixels, np.arange(108).reshape(9, 12).astype(np.uint8)])
    add("alpha.png", PIL.Image.fromarray(alpha).save, pixels)
    grey = pixels[..., 0]
    three = np.repeat(grey[..., None], 3, 2)
    add("grey.png", PIL.Image.fromarray(grey).save, three)
    add("grey alpha.png", png(np.dstack([grey, grey]), 4, 8), three)
    add("bits.png", PIL.Image.fromarray(grey > 80).save, np.repeat((grey > 80)[..., None], 3, 2) * 255)
    deep = (np.arange(108).reshape(9, 12) * 600).astype(np.uint16)
    of_deep = np.repeat(np.rint(deep / 257)[..., None], 3, 2)
    add("16 bits.png", png(deep.astype(">u2"), 0, 16), of_deep)
    add("16 bits.tif", PIL.Image.fromarray(deep).save, of_deep)
    add("48 bits.png", png(np.dstack([deep] * 3).astype(">u2"), 2, 16), of_deep)
    unit = np.linspace(0, 1, 108, dtype=np.float32).reshape(9, 12)
    add("float.tif", PIL.Image.fromarray(unit).save, np.repeat(np.rint(unit * 255)[..., None], 3, 2))
    inks = PIL.Image.fromarray(np.dstack([255 - pixels, np.zeros((9, 12, 1), np.uint8)]), "CMYK")
    add("cmyk.tif", inks.save, pixels)
    add("cmyk.jpg", lambda path: inks.save(path, quality=100, subsampling=0), pixels)
    turns = {2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 6: lambda x: np.rot90(x, -1)}
    turns |= {5: lambda x: x.transpose(1, 0, 2), 8: np.rot90, 7: lambda x: np.rot90(x, 2).transpose(1, 0, 2)}
    for number, turn in turns.items():
        exif = PIL.Image.Exif()
        exif[274] = number
        add(f"turned {number}.png", lambda path, exif=exif: plain.save(path, exif=exif), turn(pixels))
    add("exif broken.png", png(pixels, 2, 8, chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff")), pixels)
    (root / "link.png").symlink_to(root / "a" / "0.png")
    expected["link.png"] = pixels.astype(int)
    one = pixels[:1, :1]
    add("one pixel.png", PIL.Image.fromarray(one).save, one)
    # none of these is an image that can be read
    add("empty.jpg", b"", None)
    add("empty.png", b"", None)
    add("text.jpg", b"<html>404</html>", None)
    big = picture(1, (200, 200))
    for kind in ("jpg", "png", "gif", "bmp", "tif"):
        big.save(tmp_path / f"whole.{kind}")
        stored = (tmp_path / f"whole.{kind}").read_bytes()
        add(f"truncated.{kind}", stored[: len(stored) * 2 // 3], None)
    add("float beyond.tif", PIL.Image.fromarray(unit * 7).save, None)
    for name, target in (("broken.png", "gone.png"), ("itself.png", "itself.png")):
        (root / name).symlink_to(root / target)
        bad.add(name)
    # and these are none by their names, or none of a user's
    for name in (".DS_Store", "a/._0.png", "notes.txt", "film.mp4", "README", "x.heic", "__MACOSX/0.png"):
        (root / name).write_bytes(b"no image")
    (root / "a" / "up").symlink_to(root)
    (root / "again").symlink_to(root / "a")
    os.mkfifo(root / "pipe.png")
    return root, expected, bad


LOSSY = ("0.JPG", "4.5 years", "cmyk.jpg", "16 bits", "48 bits")


def test_odd_files_are_read_right_or_counted_and_named(
    odd: tuple[Path, dict[str, np.ndarray], set[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    root, expected, bad = odd
    data = Images(str(root), transforms=RESIZE)
    said = capsys.readouterr().out
    names = [os.path.relpath(path, root) for path in data.paths]
    assert sorted(names) == sorted(expected) and len(expected) >= 40
    for name, path in zip(names, data.paths, strict=True):
        got = array(read_image(path))
        assert got.shape == expected[name].shape, name
        tolerance = 4 if any(part in name for part in LOSSY) else 0
        assert np.abs(got - expected[name]).max() <= tolerance, name
    assert f"{len(bad)} left out, for" in said
    assert all(str(root / name) in said for name in bad)
    assert "empty.jpg is empty (0 bytes)" in said and "broken.png is a link that leads nowhere" in said
    left_out = "1 .heic, 1 .mp4, 1 .txt, 3 hidden, 2 link to a folder that is read already, 1 neither file nor folder"
    assert f"{left_out}, 1 without extension, such as" in said
    assert data.classes == () and set(data.labels) == {-1} and data.num_labelled == 0
    assert len(list(data.content())) == len(data)
    with pytest.raises(FBTError, match=rf"\({len(bad) - 1} more like it\); mend or remove it, or set on_error='skip'"):
        Images(str(root), on_error="stop", transforms=RESIZE)


def test_names_that_are_no_text_and_folders_that_link_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        picture().save(tmp_path / name / "x.png")
    (tmp_path / "a" / "to_b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "to_a").symlink_to(tmp_path / "a")
    raw = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    with open(raw, "wb") as file:  # noqa: PTH123
        file.write((tmp_path / "a" / "x.png").read_bytes())
    with open(raw.replace(b".png", b".jpg"), "wb"):  # noqa: PTH123
        pass
    data = Images(str(tmp_path))
    assert len(data) == 3 and os.fsencode(data.paths[0]) == raw
    assert "\\xff\\xfe.jpg is empty" in capsys.readouterr().out
    assert len(data.fingerprint()) == 64 and data.name_of(0).endswith("\\xff\\xfe.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_what_permissions_forbid_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.png", "b.png"):
        picture().save(tmp_path / name)
    (tmp_path / "locked").mkdir()
    (tmp_path / "b.png").chmod(0)
    (tmp_path / "locked").chmod(0)
    assert len(Images(str(tmp_path))) == 1
    said = capsys.readouterr().out
    assert "b.png is no readable image (Permission denied)" in said and "locked is a folder that cannot be read" in said


def folder(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(root / name)
    return root


@pytest.mark.parametrize("start", [0, 4, 5])
def test_what_is_damaged_in_its_middle_gives_its_place_to_the_next_image(tmp_path: Path, start: int) -> None:
    root = folder(tmp_path, *(f"{number}.png" for number in range(6)))
    for number in {start, 5} if start else {0}:
        path = root / f"{number}.png"
        path.write_bytes(broken_middle(path.read_bytes()))
    data = Images(str(root), transforms=[dict(type="RandomCrop", size=4)])
    assert len(data) == 6 and not unreadable(data.paths)
    shown = [data[3, position]["index"] for position in range(6)]
    assert shown == {0: [1, 1, 2, 3, 4, 5], 4: [0, 1, 2, 3, 0, 0], 5: [0, 1, 2, 3, 4, 0]}[start]
    assert data.failed.nonzero().flatten().tolist() == sorted({start, 5} if start else {0})
    again = Images(str(root), transforms=[dict(type="RandomCrop", size=4)])
    assert all((again[3, n]["inputs"] == data[3, n]["inputs"]).all() for n in reversed(range(6)))
    strict = Images(str(root), on_error="stop") if start else None
    with pytest.raises(FBTError, match=r"\d.png is no readable image"):
        (strict and strict[start]) or Images(str(root), on_error="stop")


def test_a_table_labels_some_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accents = unicodedata.normalize("NFD", "é.png")
    root = folder(tmp_path, "x/0.png", "x/1.png", "y/deep/2.png", accents)
    table = root / "labels.csv"
    rows = [
        "path;label;by",
        "x/0.png;dog;me",
        "y\\deep\\2.png;cat",
        f"{unicodedata.normalize('NFC', 'é.png')};dog",
        "x/1.png;",
    ]
    table.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).encode())
    data = Images(str(root))
    assert data.classes == ("cat", "dog") and data.labels == [1, 1, -1, 0] and data.num_labelled == 3
    assert capsys.readouterr().out == ""
    assert Images.describe([], root=str(root)) == (2, (9, 12))
    assert Images(str(root), labels=None).labels == [-1] * 4
    assert Images(str(root), classes=["dog", "cow", "cat"]).labels == [0, 0, -1, 2]
    with pytest.raises(ConfigError, match=r"^Images: classes: 'dog' is there twice$"):
        Images(str(root), classes=["dog", "cat", "dog"])
    with pytest.raises(ConfigError, match=r"^Images: classes: \['dog'\] is there twice$"):
        Images.describe([], root=str(root), classes=[["dog"], ["dog"]])
    held = Images(str(root), split="val", validation=2), Images(str(root), validation=2)
    assert held[0].num_labelled == 2 and held[1].num_labelled == 1 and held[0].classes == held[1].classes
    assert sorted(held[0].paths + held[1].paths) == sorted(data.paths)
    table.write_text("path,label\nx/0.png,10\nx/1.png,9\ngone.png,3\n")
    assert Images(str(root)).classes == ("9", "10")
    assert "1 labels without an image, such as gone.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("file,class\n", "begins with 'file,class'; expected a first line 'path,label'"),
        ("path,label\n", "labels.csv has no image with a label; expected a first line .* or say labels=None"),
        ("path,label\n0.png,\n", "labels.csv has no image with a label"),
        ("path,label\nz.png,a\n", "none of its 1 labels belongs to an image: 'z.png' is not there"),
        ("path,label\n0.png,a\n./0.png,b\n", "line 3: 0.png has two labels, 'a' and 'b'"),
    ],
)
def test_tables_that_fit_no_images_are_one_line(tmp_path: Path, text: str, line: str) -> None:
    (folder(tmp_path, "0.png") / "labels.csv").write_text(text)
    with pytest.raises(FBTError, match=line) as caught:
        Images(str(tmp_path))
    assert len(caught.value.lines()) == 1
    assert Images(str(tmp_path), labels=None).num_labelled == 0


def test_folders_label_images_beside_those_without(tmp_path: Path) -> None:
    root = folder(tmp_path, "cat/0.png", "dog/sub/1.png", "unlabelled/2.png", "3.png")
    data = Images(str(root))
    assert data.classes == ("cat", "dog") and data.labels == [-1, 0, 1, -1]
    assert Images.describe([], root=str(root))[0] == 2
    (root / "cow").mkdir()
    with pytest.raises(FBTError, match="no image that can be read in 'cow'"):
        Images(str(root))
    bare = folder(tmp_path / "bare", "cat/0.png", "dog/1.png")
    assert Images(str(bare)).classes == () and Images.describe([], root=str(bare))[0] == 0
    assert Images(str(bare), labels="folders").labels == [0, 1]


def test_folders_without_images_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(FBTError, match="is no folder of images"):
        Images(str(tmp_path / "gone"))
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(FBTError, match=r"has no image that can be read \(left out: 1 .txt, such as .*notes.txt\)"):
        Images(str(tmp_path))
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(FBTError, match=r"has no image that can be read: .*a.png is empty"):
        Images(str(tmp_path))
    picture().save(tmp_path / "a.png")
    for options, line in (
        (dict(on_error="skp"), "on_error is 'skip' or 'stop', not 'skp'; did you mean 'skip'"),
        (dict(split="test"), "another folder: give its root"),
        (dict(validation=1), "validation is 0 to 0 for split 'train', got 1"),
        (dict(labels="no.csv"), "No such file"),
    ):
        with pytest.raises((ConfigError, FBTError), match=line):
            Images(str(tmp_path), **options)


def test_damaged_bytes_never_raise_anything_but_a_line(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for kind in ("jpg", "png", "gif", "bmp", "tif", "webp", "ppm", "tga"):
        path = tmp_path / f"x.{kind}"
        picture().save(path)
        stored = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(25):
            changed = stored.copy()
            where = generator.integers(0, len(stored), 6)
            changed[where] = generator.integers(0, 256, 6)
            path.write_bytes(changed.tobytes())
            try:
                assert read_image(path).mode == "RGB"
            except FBTError as error:
                assert len(error.lines()) == 1 and str(path) in str(error)
    assert len(list_images(tmp_path).paths) == 8


# ---- runs -----------------------------------------------------------------------------------------------------------


SPLITLESS = {f"{split}_{part}": None for split in ("val", "test") for part in ("dataloader", "evaluator", "cfg")}
LOADER = {"train_dataloader.num_batch_per_epoch": None, "train_dataloader.drop_last": False}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    root.mkdir()
    for number in range(20):
        picture(7 * number, (32, 32)).save(root / f"{number:02}.png")
    return root


def images_of(root: Path, **options: object) -> dict[str, object]:
    crop = dict(type="RandomCrop", size=32, padding=4)
    return {"train_dataloader.dataset": dict(type="Images", root=str(root), transforms=[crop], **options)}


def test_a_run_without_labels_and_with_a_damaged_image_goes_on_exactly(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = photos / "03.png"
    path.write_bytes(broken_middle(path.read_bytes()))
    options = {**SPLITLESS, **LOADER, **images_of(photos), "model.task_loss": None, "train_cfg.val_interval": 1}
    options |= {"model.logit_loss": dict(type="OFALoss", gamma=1.5), "default_hooks.checkpoint.interval": 1}
    config = builder(tmp_path)
    whole = run(config("whole", **options))
    said = capsys.readouterr().out
    assert "20 images without labels" in said and said.count("03.png") == 1
    assert "1 images of train cannot be read; the next is shown in the place of each" in said
    assert "num_classes" not in data_info(whole.train_dataloader.dataset)
    run_until(config("cut", **options), 7)
    assert_same(whole, run(config("cut", **options, resume=True)), "epoch_3.pth")
    with pytest.raises(FBTError, match=r"03.png is no readable image"):
        run(config("strict", **options, **{"train_dataloader.dataset.on_error": "stop"}))


def test_a_run_with_labels_of_some(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classes = FashionMNISTMini.known_classes
    rows = [f"{number:02}.png,{classes[number]}" for number in range(3)]
    (photos / "labels.csv").write_text("\n".join(["path,label", *rows]))
    options = {**LOADER, **images_of(photos, classes=list(classes)), "data_preprocessor": dict(mixup_alpha=0.8)}
    runner = run(builder(tmp_path)(**options, **{"train_cfg.max_epochs": 1}))
    assert "20 images of 10 classes, 3 with a label, 20 for validation" in capsys.readouterr().out
    assert all(np.isfinite(value) for record in curve(runner) for value in record.values())
    assert data_info(runner.train_dataloader.dataset) == {"num_samples": 20, "num_classes": 10, "num_labelled": 3}
    with pytest.raises(ConfigError, match=r"val_dataloader.dataset: class 'T-shirt/top' is number 0, and in train 1"):
        open_splits(builder(tmp_path)(**LOADER, **images_of(photos), **{"model.student.num_classes": 3}))


def test_what_needs_labels_is_refused_before_any_training(photos: Path, tmp_path: Path) -> None:
    same = {"val_dataloader.dataset": dict(type="Images", root=str(photos)), "model.task_loss": None}
    for options, line in (
        ({}, "model.task_loss: CrossEntropyLoss needs labels, and the training images have none"),
        ({**same}, "val_evaluator: TopK needs labels, and the images of this split have none: set val_dataloader"),
        ({"model.teacher": None, "model.edges": [], "model.fusion": None}, "model.task_loss: CrossEntropyLoss needs"),
    ):
        config = builder(tmp_path)(**LOADER, **images_of(photos), **options)
        with pytest.raises(ConfigError) as error:
            check_config(config)
        assert sum(line in problem for problem in error.value.problems) == 1, error.value.problems
    with pytest.raises(ConfigError, match="val_evaluator: TopK needs labels"):
        open_splits(config := builder(tmp_path)(**LOADER, **images_of(photos), **same))
    with pytest.raises(ConfigError, match="val_evaluator: TopK needs labels"):
        run(config)
