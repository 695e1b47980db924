"""Configs and weights: from arguments, folders and the Hub; and every mistake is one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build
from safetensors.torch import save_file
from torch import nn

from fbt_plugins import ARCHITECTURES, ConfigError, FBTError, StagedModel, UnknownNameError

IMAGENET = (0.485, 0.456, 0.406)


def open_model(**config: Any) -> StagedModel:
    return ARCHITECTURES.build(dict(type="huggingface", num_classes=7) | config)


def same(a: StagedModel, b: StagedModel, but: str = "-") -> bool:
    ours, theirs = a.net.state_dict(), b.net.state_dict()
    assert ours.keys() == theirs.keys()
    return all(torch.equal(v, theirs[k]) for k, v in ours.items() if not k.startswith(but))


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A tiny Swin of 7 classes, as transformers saves it."""
    build("swin").net.save_pretrained(tmp_path / "swin")
    return str(tmp_path / "swin")


def test_a_folder_says_what_the_model_is(folder: str) -> None:
    model = open_model(checkpoint=folder)
    assert model.name == "swin" and same(model, build("swin")) and model.net.training
    assert model.verify(64) and model.image_size == (64, 64)
    assert open_model(checkpoint=folder, hidden_dropout_prob=0.5).net.config.hidden_dropout_prob == 0.5
    assert same(open_model(name="swin", pretrained=folder), model)


@pytest.mark.parametrize("name", ["beit", "convnext", "deit_with_teacher", "dinov2", "resnet", "vit"])
def test_what_transformers_saved_comes_back(name: str, tmp_path: Path) -> None:
    build(name).net.save_pretrained(tmp_path)
    model = open_model(checkpoint=str(tmp_path))
    assert model.name == name and same(model, build(name))
    assert same(open_model(checkpoint=str(tmp_path / "model.safetensors")), model)


def test_a_file_of_weights_fits_the_model_that_the_config_builds(tmp_path: Path) -> None:
    expected = build("vit")
    save_file(expected.net.state_dict(), tmp_path / "student.safetensors")
    torch.manual_seed(1)
    model = open_model(
        name="vit", checkpoint=str(tmp_path / "student.safetensors"), **{**expected.arguments, "num_classes": 7}
    )
    assert same(model, expected)
    with pytest.raises(FBTError, match=r"does not fit vit: .* is .* in the file and .* in the model"):
        build("vit", hidden_size=12, checkpoint=str(tmp_path / "student.safetensors"))


def test_a_head_of_another_size_gives_way_to_a_fresh_one_where_that_is_asked_for(folder: str) -> None:
    for classes in (3, 7):
        model = open_model(pretrained=folder, num_classes=classes, head="new")
        assert model.num_classes == classes and model.verify(64)
        state = build("swin").net.state_dict()
        assert all(k.startswith("classifier") or torch.equal(v, state[k]) for k, v in model.net.state_dict().items())
        assert not torch.equal(model.net.classifier.weight[:3], state["classifier.weight"][:3])
    for source in ("pretrained", "checkpoint"):
        with pytest.raises(ConfigError, match=r"swin: '.*' has 7 classes, not 3; head='new' puts a fresh head on it"):
            open_model(**{source: folder}, num_classes=3)
    with pytest.raises(FBTError, match=r"does not fit swin: \d+ of another shape \(swin"):
        open_model(pretrained=folder, embed_dim=16, head="new")


def test_normalisation_is_that_of_the_folder(folder: str) -> None:
    assert open_model(checkpoint=folder).mean == IMAGENET
    stated = dict(image_mean=[0.5, 0.5, 0.5], image_std=[0.25, 0.25, 0.25], image_processor_type="ViTImageProcessor")
    (Path(folder) / "preprocessor_config.json").write_text(json.dumps(stated))
    model = open_model(checkpoint=folder)
    assert model.mean == (0.5,) * 3 and model.std == (0.25,) * 3
    assert open_model(checkpoint=folder, mean=(0, 0, 0)).mean == (0, 0, 0)
    assert build("vit", num_channels=1).mean == (0.5,)


def test_a_check_needs_no_weights(folder: str) -> None:
    with torch.device("meta"):
        model = open_model(pretrained=folder, num_classes=3, head="new")
        assert [s.channels for s in model.specs] == [8, 16, 32, 64]
    assert next(model.parameters()).is_meta


def test_only_safetensors_are_read(folder: str) -> None:
    (Path(folder) / "model.safetensors").unlink()
    torch.save(build("swin").net.state_dict(), Path(folder) / "pytorch_model.bin")
    with pytest.raises(FBTError, match="transformers cannot load this folder") as caught:
        open_model(checkpoint=folder)
    assert "\n" not in str(caught.value)


def test_the_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **options: object) -> None:
        raise OSError("We couldn't connect\nto the Hub")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", offline)
    with pytest.raises(
        FBTError, match=r"'google/vit'.*not to be had from the Hugging Face Hub \(We couldn't connect to"
    ):
        open_model(pretrained="google/vit")


@pytest.mark.parametrize(
    ("config", "error", "reason"),
    [
        (dict(name="vitt"), UnknownNameError, "has no model 'vitt'; did you mean 'vit'"),
        (dict(name="imagegpt"), UnknownNameError, "transformers has 'imagegpt', and this plugin has no cut for it"),
        (dict(name="bert"), UnknownNameError, "no model 'bert'"),
        (dict(name="vit", hidden_sise=24), ConfigError, "ViTConfig takes no argument 'hidden_sise'.*'hidden_size'"),
        (dict(name="vit", num_labels=3), ConfigError, "no argument 'num_labels'.*'num_classes'"),
        (dict(name="vit", return_dict=False), ConfigError, "no argument 'return_dict'"),
        (dict(name="vit", hidden_size="wide"), ConfigError, "refuses these arguments .*expected int"),
        (dict(name="vit", hidden_act="gelu2"), ConfigError, "refuses these arguments"),
        (dict(name="vit", num_hidden_layers=3), ConfigError, "3 blocks cannot make 4 stages"),
        (dict(name="vit", num_classes=None), ConfigError, "'num_classes' is missing"),
        (dict(), ConfigError, "'name' is missing"),
        (dict(name="vit", pretrained=True), ConfigError, "pretrained is a name on the Hub"),
        (dict(name="vit", head="new"), ConfigError, "head can be 'new', .* and there are no weights"),
        (dict(name="vit", pretrained="a/b", checkpoint="c"), ConfigError, "give one of them"),
        (dict(name="vit", checkpoint="nowhere.pth"), FBTError, "'nowhere.pth': no such file"),
        (dict(name="beit", use_shared_relative_position_bias=True), ConfigError, "no cut could own it"),
    ],
)
def test_what_cannot_be_built_is_one_line(config: dict[str, Any], error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason) as caught:
        open_model(**config)
    assert "\n" not in str(caught.value)


def test_a_release_of_transformers_that_builds_a_model_of_other_parts_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers import ViTModel

    monkeypatch.setattr(ViTModel, "__getattr__", lambda self, name: nn.Module.__getattr__(self, f"other_{name}"))
    with pytest.raises(FBTError, match=r"vit: transformers 5\.[\d.]+ builds it of other parts \(.*other_\w+"):
        build("vit")


def test_a_folder_of_another_model_is_one_line(folder: str) -> None:
    with pytest.raises(ConfigError, match="is a 'swin', not a 'vit'"):
        open_model(name="vit", pretrained=folder)
