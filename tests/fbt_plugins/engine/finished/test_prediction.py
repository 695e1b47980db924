"""Images that are files, as a run's student sees them."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import Done
from PIL import Image
from safetensors.torch import save_file

from fbt_plugins import FBTError, load_student
from fbt_plugins.data import FashionMNISTMini
from fbt_plugins.engine.finished.prediction import Predictions, predict, write_predictions
from fbt_plugins.engine.finished.student import read_student
from fbt_plugins.engine.runner import DistillRunner
from fbt_plugins.models.weights import METADATA_KEY, read_weights

GIVEN = 4


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with images of the test split, one of them deeper, and with files that are none."""
    folder, stored = tmp_path / "pictures", FashionMNISTMini("test")
    (folder / "deeper").mkdir(parents=True)
    for number in range(GIVEN):
        pixels = stored[number]["inputs"].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / ("deeper" if number == 0 else "") / f"{number}.png")
    (folder / "empty.png").touch()
    (folder / "notes.txt").write_text("no image")
    Image.new("RGB", (300, 200)).save(folder / "large.jpg")
    return folder


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("workers", [0, 1])
def test_classes_are_those_of_the_loaded_student(
    whole: DistillRunner, pictures: Path, tmp_path: Path, tool: Callable[..., Done], workers: int
) -> None:
    out = tmp_path / "classes.csv"
    done = tool("predict", whole.work_dir, pictures, "--out", out, "--top", 2, "--batch-size", 3, "--workers", workers)
    assert done.code == 0, done.err
    net, transform = load_student(Path(whole.work_dir) / "student.safetensors")
    head, *found = rows(out)
    assert head == ["file", "class_1", "probability_1", "class_2", "probability_2"]
    assert sorted(Path(row[0]).name for row in found) == [f"{number}.png" for number in range(GIVEN)]
    names = FashionMNISTMini("test").classes
    for path, *cells in found:
        with torch.no_grad():
            values, best = net(transform(Image.open(path))[None]).softmax(1)[0].topk(2)
        assert cells[0::2] == [names[number] for number in best.tolist()]
        assert np.allclose([float(cell) for cell in cells[1::2]], values, atol=1e-5)


def test_odd_files_are_counted_and_named(
    whole: DistillRunner, pictures: Path, tmp_path: Path, tool: Callable[..., Done]
) -> None:
    out = tool("predict", whole.work_dir, pictures, "--out", tmp_path / "x.csv").out
    assert f"images   {GIVEN}, the 10 classes of each" in out and "others   1 files in the folders" in out
    assert "left out 2 files that cannot be used" in out and "empty.png: is no readable image" in out
    assert "large.jpg: the run's transforms make 204x304 of its 200x300 pixels, the student takes 32x32" in out


def test_embeddings_as_an_array(
    whole: DistillRunner, pictures: Path, tmp_path: Path, tool: Callable[..., Done]
) -> None:
    out = tmp_path / "e.npy"
    assert tool("predict", whole.work_dir, pictures, "--embeddings", "--out", out).code == 0
    names = json.loads(out.with_name("e.npy.json").read_text())
    found = np.load(out, allow_pickle=False)
    assert found.shape == (GIVEN, 16) and len(names["files"]) == GIVEN and names["classes"] == []
    student, transform = whole.distiller.student, load_student(Path(whole.work_dir) / "student.safetensors")[1]
    inputs = torch.stack([transform(Image.open(path)) for path in names["files"]])
    with torch.no_grad():
        assert np.allclose(student.eval().knowledge(inputs).features, found, atol=1e-5)
    as_text = tmp_path / "e.csv"
    tool("predict", whole.work_dir, pictures, "--embeddings", "--out", as_text)
    assert np.allclose(np.array([row[1:] for row in rows(as_text)[1:]], dtype=float), found, atol=1e-5)


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (["nothing.jpg"], "nothing.jpg: no such file or folder"),
        (["{folder}/deeper", "--out", "x.txt"], "--out x.txt: write NAME.csv or NAME.npy"),
        (["{folder}/notes.txt"], "none of 1 files can be used; {folder}/notes.txt: is no readable image"),
        (["{folder}", "--out", "{there}"], "--out {there}: it exists; remove it, or write to another file"),
        (["{nothing}"], "{nothing}: no image there"),
        (
            ["{folder}", "--out", "{there}/x.csv"],
            "--out {there}/x.csv: it cannot be written ({there}: Not a directory)",
        ),
        (["{folder}", "--top", "0"], "--top is 1 or more"),
    ],
)
def test_what_is_wrong_is_one_line(
    whole: DistillRunner, pictures: Path, tmp_path: Path, tool: Callable[..., Done], typed: list[str], line: str
) -> None:
    places = {"folder": pictures, "there": tmp_path / "there.csv", "nothing": tmp_path / "nothing"}
    places["there"].touch()
    places["nothing"].mkdir()
    code, out, err = tool("predict", whole.work_dir, *(word.format(**places) for word in typed))
    assert code == 2 and not out and err.count("\n") == 1, err
    assert err.startswith(f"error: {line.format(**places)}")


def test_a_name_that_is_no_text_comes_back_as_its_bytes(tmp_path: Path) -> None:
    """Linux' names are any bytes but NUL; Python has those that are no UTF-8 as lone surrogates."""
    name = os.fsdecode(b"caf\xff\xc3\xa9.png")
    for classes in (["cat"], []):
        found = Predictions(classes, [name], np.ones((1, 1), np.float32))
        (path,) = write_predictions(found, tmp_path / f"{len(classes)}.csv", 1)
        assert path.read_bytes().splitlines()[1].startswith(os.fsencode(name) + b",")
    _, names = write_predictions(found, tmp_path / "x.npy", 1)
    assert json.loads(names.read_text(encoding="utf-8"))["files"] == [name]


def test_images_of_such_names_are_answered_and_named(
    whole: DistillRunner, pictures: Path, tmp_path: Path, tool: Callable[..., Done]
) -> None:
    good, bad = (tmp_path / os.fsdecode(name) for name in (b"good\xff.png", b"bad\xff.png"))
    (pictures / "1.png").rename(good)
    bad.touch()
    out = tmp_path / os.fsdecode(b"out\xff.csv")
    done = tool("predict", whole.work_dir, good, bad, "--out", out)
    assert done.code == 0 and rf"{tmp_path}/bad\xff.png: is no readable image" in done.out, done.err
    assert out.read_bytes().splitlines()[1].startswith(os.fsencode(good) + b",")


def damaged(run: DistillRunner, folder: Path, **about: object) -> Path:
    """The student's file of a run that says something else about it, without a signature."""
    source, changed = Path(run.work_dir) / "student.safetensors", folder / "changed.safetensors"
    tensors, said = read_weights(str(source))
    said = {key: value for key, value in {**said, **about}.items() if value != "missing"}
    save_file(tensors, changed, metadata={METADATA_KEY: json.dumps(said)})
    return changed


@pytest.mark.parametrize(
    ("about", "line"),
    [
        ({"classes": 7}, r"'classes' is a list of names, not int 7"),
        ({"image_size": "big"}, r"'image_size' is \[height, width\], not str 'big'"),
        ({"transforms": ["x"]}, r"'transforms' is a list of objects, not list \['x'\]"),
        ({"config": 3}, r"'config' is an object, not int 3"),
        ({"name": 3}, r"'name' is text, not int 3"),
        ({"config": "missing", "arguments": "missing"}, r"'arguments' is an object, and it is missing"),
    ],
)
def test_a_file_that_says_what_cannot_be(
    whole: DistillRunner, tmp_path: Path, about: dict[str, object], line: str
) -> None:
    path = damaged(whole, tmp_path, **about)
    with pytest.raises(FBTError, match=rf"changed\.safetensors: what it says about its model is damaged: {line}"):
        read_student(path)


@pytest.mark.parametrize("embeddings", [False, True])
def test_outputs_that_are_not_finite_are_no_answer(
    whole: DistillRunner, pictures: Path, tmp_path: Path, embeddings: bool
) -> None:
    student = read_student(damaged(whole, tmp_path))
    for weights in student.model.net.parameters():
        weights.data.fill_(float("nan"))
    with pytest.raises(FBTError, match=r"the student's (outputs|features) are not finite \(.*1\.png\)"):
        predict(student, [str(pictures / "1.png")], embeddings)
