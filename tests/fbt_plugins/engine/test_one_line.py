"""`fbt_plugins.distill`: folders, names of models and methods become a run that goes, or one line that says why not."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import fbt_plugins
import fbt_plugins.distill.edge
from fbt_plugins import ConfigError, FBTError, load_plugins, load_student
from fbt_plugins.commands import fbt
from fbt_plugins.commands.distill import command_line
from fbt_plugins.config.loading import load_config, shipped_methods
from fbt_plugins.data.image_files import class_folders
from fbt_plugins.data.label_files import folder_classes, has_unlabelled
from fbt_plugins.engine.finished.student import save_student
from fbt_plugins.engine.one_line import distill
from fbt_plugins.engine.one_line.folder import read_folder
from fbt_plugins.engine.one_line.models import fitted, named, own_size
from fbt_plugins.engine.one_line.recipe import Choices, method
from fbt_plugins.engine.plan import Plan
from fbt_plugins.models.weights import METADATA_KEY
from fbt_plugins.registry.registries import ARCHITECTURES

CLASSES = ("cat", "dog", "emu")
NETWORK = """
from torch import nn


def make(num_classes, width=4):
    def block(before, after):
        return nn.Sequential(nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU())

    rows = [block(*ends) for ends in ((3, width), (width, width), (width, 2 * width), (2 * width, 2 * width))]
    return nn.Sequential(*rows, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, num_classes))
"""
VIT_OF_TIMM = dict(model_name="vit_tiny_patch16_224", patch_size=4, img_size=16, embed_dim=12, depth=4, num_heads=2)
VIT = dict(type="timm", name="vit_tiny_patch16_224", patch_size=4, img_size=16, embed_dim=12, depth=4, num_heads=2)


@pytest.fixture(scope="module", autouse=True)
def plugins() -> None:
    load_plugins()


@pytest.fixture(scope="module")
def image() -> bytes:
    """A PNG of 20x16 pixels."""
    from io import BytesIO

    buffer = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 20, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


Fill = Callable[..., Path]


@pytest.fixture
def fill(tmp_path: Path, image: bytes) -> Fill:
    """Makes a folder of images from how many there are in each place."""

    def make(places: Mapping[str, int], name: str = "photos") -> Path:
        for place, count in places.items():
            (tmp_path / name / place).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                (tmp_path / name / place / f"{number:02}.png").write_bytes(image)
        return tmp_path / name

    return make


@pytest.fixture
def network(tmp_path: Path) -> str:
    """A network of one's own, in a file that is on no path of modules."""
    (tmp_path / "my_net.py").write_text(NETWORK)
    return f"{tmp_path / 'my_net.py'}:make"


# ---- folders ---------------------------------------------------------------------------------------------------------


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


# ---- models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("resnet18", "--teacher 'resnet18': write timm:NAME.*did you mean 'timm:resnet18'"),
        ("timm:", "write timm:NAME"),
        ("nowhere.py:make", "there is no file nowhere.py"),
        ("my/net:make", "write timm:NAME"),
        ("timm:resnet19", "timm has no model 'resnet19'"),
    ],
)
def test_names_of_no_model(text: str, line: str) -> None:
    with pytest.raises(FBTError, match=line):
        own_size(named("teacher", text, None, pretrained=False).with_classes(0))


def test_names_of_weights_on_the_hub_are_no_random_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES.module_dict, "huggingface", object)
    for role, way in (("teacher", "leave out --no-pretrained"), ("student", "say --pretrained-student")):
        with pytest.raises(ConfigError, match=f"--{role} hf:org/net: it names weights: {way}, or name a type"):
            named(role, "hf:org/net", None, pretrained=False)
    assert named("student", "hf:dinov2", None, pretrained=False).weights == "random weights"


def test_names_of_models(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert named("student", "timm:resnet18", None, False).config == dict(type="timm", name="resnet18")
    assert named("teacher", "timm:resnet18", None, True).config["pretrained"] is True
    with pytest.raises(FBTError, match="the plugin fbt-huggingface's"), monkeypatch.context() as patch:
        patch.delitem(ARCHITECTURES.module_dict, "huggingface", raising=False)
        named("teacher", "hf:vit", None, True)
    monkeypatch.setitem(ARCHITECTURES.module_dict, "huggingface", dict)
    assert named("teacher", "hf:facebook/dinov2-small", None, True).config == dict(
        type="huggingface", pretrained="facebook/dinov2-small"
    )
    own = named("student", network, None, False).config
    assert own["type"] == "module" and Path(own["path"].rpartition(":")[0]).is_absolute()


@pytest.mark.parametrize(
    ("config", "size", "change"),
    [
        (dict(VIT), 16, {}),
        (dict(VIT), 24, dict(img_size=24)),
        (dict(VIT), 22, dict(img_size=24, input_size=24)),
        (dict(VIT, pretrained=True), 24, dict(dynamic_img_size=True)),
        (dict(VIT, pretrained=True), 18, dict(dynamic_img_size=True, input_size=16)),
        (dict(type="timm", name="mixer_s4_patch4_32", pretrained=True), 64, dict(input_size=(32, 32))),
    ],
)
def test_a_model_is_made_for_the_images_and_keeps_what_it_learned(
    config: dict[str, Any], size: int, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Position embeddings that were learned are resized, those of token mixers cannot be: then images are."""
    timm_models = sys.modules[ARCHITECTURES.get("timm").__module__]
    monkeypatch.setattr(timm_models, "_pretrained_classes", lambda *args: 1000)
    found, model = fitted(named("teacher", config, None, True).with_classes(0), size)
    assert {key: value for key, value in found.items() if config.get(key) != value} == {"num_classes": 0, **change}
    assert model.specs_at(model.input_size or (size, size))


def test_a_teacher_keeps_its_head_only_for_its_own_classes(tmp_path: Path, network: str) -> None:
    imagenet = named("teacher", "timm:resnet18.tv_in1k", None, True)
    assert imagenet.count == 1000 and not imagenet.knows(CLASSES)
    assert imagenet.knows(tuple(f"n{number:08}" for number in range(1000)))
    assert not imagenet.knows(tuple(f"thing {number}" for number in range(1000)))
    config = dict(type="module", path=network, num_classes=3, image_size=16)
    save_student(ARCHITECTURES.build(config), tmp_path / "t.safetensors", {"config": config, "classes": list(CLASSES)})
    ours = named("teacher", network, str(tmp_path / "t.safetensors"), True)
    assert ours.knows(CLASSES) and not ours.knows(CLASSES[::-1]) and ours.config["image_size"] == 16


# ---- methods ---------------------------------------------------------------------------------------------------------


def test_a_method_leaves_out_what_does_not_go() -> None:
    whole = method("fbt", labels=True, logits=True)
    assert whole.model["logit_loss"]["type"] == "OFALoss" and not whole.left_out
    part = method("fbt", labels=False, logits=False)
    assert part.model["logit_loss"] is None and part.model["task_loss"] is None and "OFALoss" in part.left_out
    assert part.model["feature_loss"] == whole.model["feature_loss"]
    with pytest.raises(ConfigError, match=r"--method kd compares logits alone, and the images have none; .*fbt"):
        method("kd", labels=False, logits=False)
    with pytest.raises(ConfigError, match="--method scratch needs labels"):
        method("scratch", labels=False, logits=False)
    with pytest.raises(ConfigError, match="did you mean 'rsd'"):
        method("rds", labels=True, logits=True)
    assert {name for name in shipped_methods()[0] if method(name, labels=True, logits=True)} == set(
        shipped_methods()[0]
    )


def test_wrong_numbers_have_a_line_each() -> None:
    with pytest.raises(ConfigError) as found:
        Choices(epochs=0, batch_size=1, workers=-1, lr=0.0)
    assert [line.split()[0] for line in found.value.problems] == ["--epochs", "--batch-size", "--workers", "--lr"]


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [False, True], ids=["function", "command"])
def test_one_line_without_labels(
    fill: Fill,
    network: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: bool,
) -> None:
    """From a folder to a student's file, and a config that is the same run."""
    monkeypatch.chdir(tmp_path)
    data = fill({"a/b": 12, "": 4})
    if command:
        (tmp_path / "teachers.py").write_text(
            f"import timm\n\n\ndef make():\n    return timm.create_model(num_classes=0, **{VIT_OF_TIMM})\n"
        )
        told = (
            f"--data {data} --teacher teachers.py:make --student {network} --out out --check --device cpu --method rsd"
        )
        assert (
            fbt(["distill", *told.split(), *["--img-size", "16", "--epochs", "1", "--workers", "0", "--no-pretrained"]])
            is None
        )
        shown = capsys.readouterr().out
        assert "16 images, no labels" in shown and "method   rsd" in shown and "classes 0" in shown
        assert not Path("out").exists()
        return
    out = distill(data=data, teacher=VIT, student=network, img_size=16, epochs=1, workers=0, out="out", device="cpu")
    assert "without OFALoss" in capsys.readouterr().out
    net, transform = load_student(out / "student.safetensors")
    assert net(transform(Image.new("RGB", (30, 20)))[None]).shape == (1, 8)
    assert "student_retrieval" in json.loads((out / "summary.json").read_text())
    again = load_config(out / "config.py")
    assert again.model.logit_loss is None and again.train_dataloader.dataset.root == str(data)
    assert Plan.of(out / "config.py").distiller.models.keys() == {"student", "teacher"}


@pytest.mark.slow
def test_one_line_with_labels_and_again(fill: Fill, network: str, tmp_path: Path) -> None:
    """No second run in a run's folder, but the same that goes on; a teacher of features is compared by neighbours."""
    line: dict[str, Any] = dict(student=network, img_size=16, epochs=1, workers=0, out=tmp_path / "out", device="cpu")
    line |= dict(data=fill(dict.fromkeys(CLASSES, 8)))
    out = distill(teacher=dict(VIT, num_classes=3), **line)
    assert {"student_top1", "teacher_top1", "fusion_top1"} <= json.loads((out / "summary.json").read_text()).keys()
    with pytest.raises(FBTError, match="there is a run in it already; say --resume"):
        distill(teacher=dict(VIT, num_classes=3), **line)
    distill(teacher=dict(VIT, num_classes=3), **line, resume=True)
    out = distill(teacher=VIT, **line | dict(out=tmp_path / "features"))
    assert {"student_top1", "student_knn", "teacher_knn"} <= json.loads((out / "summary.json").read_text()).keys()


@pytest.mark.parametrize(
    ("out", "line"),
    [
        ("photos/out", "it lies in --data"),
        ("file", "it is a file"),
        ("photos", "it lies in --data"),
        ("file/out", r"--out file/out: it cannot be written \(.*/file: Not a directory\)"),
        ("/proc/out", r"--out /proc/out: it cannot be written \(/proc: "),
        (".", r"--out \.: it exists, and file is in it; name an empty folder, or a new one"),
    ],
)
def test_an_out_that_cannot_be(
    fill: Fill, network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(FBTError, match=line):
        distill(data=fill({"": 8}), teacher=VIT, student=network, out=out)


def test_a_run_that_is_not_there_cannot_go_on(fill: Fill, network: str, tmp_path: Path) -> None:
    """Said with what this command has, which is less than fbt train."""
    line = (
        r"--resume: no checkpoint in --out .*; to start from the beginning, leave out --resume and name an empty folder"
    )
    with pytest.raises(FBTError, match=line) as found:
        distill(data=fill({"": 8}), teacher=VIT, student=network, out=tmp_path / "out", resume=True)
    assert "auto" not in str(found.value)


def test_a_batch_of_more_images_than_there_are_fails_the_check(fill: Fill, network: str, tmp_path: Path) -> None:
    line: dict[str, Any] = dict(data=fill({"": 12}), teacher=VIT, student=network, out=tmp_path / "out", check=True)
    with pytest.raises(ConfigError, match=r"--batch-size 1,000: 9 images make no batch of so many; say 9 or less"):
        distill(**line, img_size=16, batch_size=1000, workers=0, device="cpu")


def test_a_method_in_other_letters_is_suggested() -> None:
    with pytest.raises(ConfigError, match=r"--method FBT: there is no such method; did you mean 'fbt'\?$"):
        method("FBT", labels=True, logits=True)


def test_a_teachers_file_that_says_what_cannot_be(tmp_path: Path) -> None:
    save_file(
        {"x": torch.zeros(1)},
        tmp_path / "t.safetensors",
        {METADATA_KEY: '{"name": "a", "arguments": {}, "classes": 7}'},
    )
    with pytest.raises(FBTError, match=r"t\.safetensors: .*'classes' is a list of names, not int 7"):
        named("teacher", "timm:resnet18", str(tmp_path / "t.safetensors"), True)


def test_weights_that_cannot_be_downloaded_say_the_ways_out(
    fill: Fill, network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = timm.create_model

    def offline(*args: Any, pretrained: bool = False, **options: Any) -> torch.nn.Module:
        if pretrained:
            raise OSError("no network")
        return create(*args, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    line: dict[str, Any] = dict(
        data=fill(dict.fromkeys(CLASSES, 8)), student=network, out=tmp_path / "out", img_size=32
    )
    with pytest.raises(FBTError, match=r"no network.*--teacher-checkpoint FILE.*--no-pretrained") as found:
        distill(teacher="timm:resnet18", workers=0, **line)
    assert len(found.value.lines()) == 1 and not (tmp_path / "out").exists()


def test_the_room_is_the_function() -> None:
    assert fbt_plugins.distill.edge is sys.modules["fbt_plugins.distill.edge"]  # type: ignore[attr-defined]
    with pytest.raises(FBTError, match="--data nowhere: there is no such folder"):
        fbt_plugins.distill(data="nowhere", teacher=VIT, student=VIT, out="out")


def test_the_command_of_a_run_is_that_of_its_start() -> None:
    argv = ["--data", "my photos", "--teacher", "a:b", "--student", "c:d", "--out", "o", "--resume"]
    assert command_line(argv) == "fbt distill --data 'my photos' --teacher a:b --student c:d --out o"
