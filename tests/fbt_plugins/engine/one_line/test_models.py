"""Names of models, made for the images, with what they have learned."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from photos import CLASSES, VIT
from safetensors.torch import save_file

from fbt_plugins import ConfigError, FBTError
from fbt_plugins.engine.finished.student import save_student
from fbt_plugins.engine.one_line.models import fitted, named, own_size
from fbt_plugins.models.weights import METADATA_KEY
from fbt_plugins.registry.registries import ARCHITECTURES


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


def test_a_teachers_file_that_says_what_cannot_be(tmp_path: Path) -> None:
    save_file(
        {"x": torch.zeros(1)},
        tmp_path / "t.safetensors",
        {METADATA_KEY: '{"name": "a", "arguments": {}, "classes": 7}'},
    )
    with pytest.raises(FBTError, match=r"t\.safetensors: .*'classes' is a list of names, not int 7"):
        named("teacher", "timm:resnet18", str(tmp_path / "t.safetensors"), True)
