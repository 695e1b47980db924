"""What a folder of images has: classes, labels, splits, and what is wrong with it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from photos import CLASSES, Fill

from fbt_plugins import FBTError
from fbt_plugins.data.image_files import class_folders
from fbt_plugins.data.label_files import folder_classes, has_unlabelled
from fbt_plugins.engine.one_line.folder import read_folder


@pytest.mark.parametrize(
    ("places", "classes", "trained", "labelled", "held_out", "said"),
    [
        ({"": 30}, (), 24, 0, 6, None),
        ({"2019/may": 10, "2019/june": 10, "others": 10}, (), 24, 0, 6, None),
        (dict.fromkeys(CLASSES, 10), CLASSES, 24, 24, 6, "folders"),
        ({**dict.fromkeys(CLASSES, 10), "": 1}, (), 25, 0, 6, None),
        ({"cat": 5, "dog": 5, "unlabelled": 20}, ("cat", "dog"), 27, 7, 3, "auto"),
    ],
    ids=["flat", "nested", "classes", "classes and loose ones", "partly"],
)
def test_what_a_folder_has(
    fill: Fill,
    places: dict[str, int],
    classes: tuple[str, ...],
    trained: int,
    labelled: int,
    held_out: int,
    said: str | None,
) -> None:
    found = read_folder(fill(places))
    assert (found.classes, found.images, found.labelled, found.held_out) == (classes, trained, labelled, held_out)
    assert found.train.get("labels", "auto") == said and found.val == {**found.train, "split": "val"}
    assert found.train["validation"] == held_out and found.test is None


def test_folders_that_are_said_to_be_classes_must_be_there(fill: Fill) -> None:
    with pytest.raises(FBTError, match=r"--labels folders: .*photos has no folders, each of a class"):
        read_folder(fill({"": 8}), "folders")


def test_a_link_that_leads_to_itself_is_no_folder(fill: Fill) -> None:
    """Asked whether it is one, the system answers with an error."""
    folder = fill({"": 6, "one": 6})
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "linked").symlink_to("one")
    found = read_folder(folder)
    assert found.images + found.held_out == 12 and folder_classes(folder) == ["linked", "one"]
    assert not has_unlabelled(folder) and class_folders(folder) == ["linked", "one"]


def test_a_table_of_labels_and_a_word_win_over_the_guess(fill: Fill, tmp_path: Path) -> None:
    folder = fill(dict.fromkeys(CLASSES, 10))
    assert read_folder(folder, "none").classes == ()
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *((f"cat/{n:02}.png", "ab"[n % 2]) for n in range(8))])
    assert read_folder(folder).classes == ("a", "b") and read_folder(folder).labelled == 8 - 3
    assert read_folder(folder, "folders").classes == CLASSES
    assert read_folder(folder, str(folder / "labels.csv")).train["labels"] == str(folder / "labels.csv")


def test_folders_of_splits(fill: Fill) -> None:
    places = {"train/cat": 6, "train/dog": 6, "val/cat": 2, "val/dog": 3, "test/cat": 1, "test/dog": 1}
    found = read_folder(fill(places))
    assert (found.images, found.held_out, found.classes) == (12, 5, ("cat", "dog"))
    assert "validation" not in found.train and found.val["classes"] == found.train["classes"] == ["cat", "dog"]
    assert found.test is not None and found.test["root"].endswith("test")
    assert read_folder(fill({"train/x": 6, "val/x": 3}, "unlabelled")).classes == ()
    other = read_folder(fill({"train": 6, "car": 6, "plane": 6}, "vehicles"))
    assert other.classes == ("car", "plane", "train")


@pytest.mark.parametrize(
    ("places", "labels", "line"),
    [
        (None, "auto", "there is no such folder"),
        ({"": 0}, "auto", "has no image that can be read"),
        ({"": 3}, "auto", "3 images are too few"),
        ({"cat": 1, "unlabelled": 9}, "auto", "only one image has a label"),
        ({"": 9}, "classes.csv", "--labels classes.csv: there is no such file; write auto, folders"),
        (
            {"train/cat": 6, "train/dog": 6, "val": 6},
            "auto",
            "images of train/ have labels, and those of val/ have none",
        ),
    ],
)
def test_folders_that_cannot_be_trained_on(
    fill: Fill, tmp_path: Path, places: dict[str, int] | None, labels: str, line: str
) -> None:
    with pytest.raises(FBTError, match=line):
        read_folder(tmp_path / "none" if places is None else fill(places), labels)
