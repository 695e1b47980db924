from pathlib import Path

import pytest

from fbt_plugins.config.loading import load_config
from fbt_plugins.config.merging import merge, merge_options
from fbt_plugins.config.options import DEFAULTS
from fbt_plugins.errors import ConfigError


def test_a_new_type_does_not_inherit_the_old_ones_arguments() -> None:
    base = dict(loss=dict(type="OFALoss", gamma=1.2), lr=1)
    assert merge(base, dict(loss=dict(type="KDLoss", temperature=4))) == dict(
        loss=dict(type="KDLoss", temperature=4), lr=1
    )
    assert merge(base, dict(loss=dict(gamma=1.5))) == dict(loss=dict(type="OFALoss", gamma=1.5), lr=1)
    assert merge(base, dict(loss=dict(type="OFALoss"))) == base


def test_a_new_model_name_keeps_the_type_only() -> None:
    base = dict(student=dict(type="timm", name="resnet18", num_classes=10, drop_rate=0.1))
    child = dict(student=dict(name="vit_tiny_patch16_224", num_classes=10))
    assert merge(base, child)["student"] == dict(type="timm", name="vit_tiny_patch16_224", num_classes=10)


def test_delete_replaces_and_none_can_be_filled() -> None:
    assert merge(dict(a=dict(b=1, c=2)), dict(a=dict(_delete_=True, b=3))) == dict(a=dict(b=3))
    assert merge(dict(a=None), dict(a=dict(b=3))) == dict(a=dict(b=3))
    with pytest.raises(ConfigError, match="a is a dict here and 3 in the base"):
        merge(dict(a=3), dict(a=dict(b=3)))


def test_options_change_values_types_and_items_of_lists() -> None:
    config = dict(model=dict(loss=dict(type="OFALoss", gamma=1.0), fusion=None), steps=[dict(end=1), dict(end=2)])
    options = {
        "model.loss.temperature": 2,
        "model.loss.type": "KDLoss",
        "steps.1.end": 9,
        "model.fusion.splice": "auto",
    }
    changed = merge_options(config, options)
    assert changed["model"] == dict(loss=dict(type="KDLoss", temperature=2), fusion=dict(splice="auto"))
    assert changed["steps"] == [dict(end=1), dict(end=9)]
    assert config["model"]["loss"] == dict(type="OFALoss", gamma=1.0)


def test_all_misplaced_options_are_reported_together() -> None:
    with pytest.raises(ConfigError) as error:
        merge_options(dict(model=dict(a=1)), {"modle.a": 1, "model.a.b": 2, "model.x.y": 3})
    assert len(error.value.problems) == 3
    assert "did you mean 'model'" in error.value.problems[0]


def test_files_inherit_as_in_mmengine_and_drop_helper_variables(tmp_path: Path) -> None:
    (tmp_path / "base.py").write_text("_lr = 0.1\nmodel = dict(loss=dict(type='A', x=1))\nlr = _lr * 2\n")
    (tmp_path / "child.py").write_text("_base_ = 'base.py'\nmodel = dict(loss=dict(type='B'))\nwd = _base_._lr\n")
    config = load_config(tmp_path / "child.py", {"lr": 3})
    own = {k: v for k, v in config.to_dict().items() if k not in DEFAULTS}
    assert own == dict(model=dict(loss=dict(type="B")), lr=3, wd=0.1)


def test_an_expression_with_a_base_variable_in_braces_is_refused(tmp_path: Path) -> None:
    (tmp_path / "base.py").write_text("lr = 0.1\n")
    (tmp_path / "child.py").write_text("_base_ = 'base.py'\ntwice = '{{_base_.lr}}' * 2\n")
    with pytest.raises(ConfigError, match="becomes a string"):
        load_config(tmp_path / "child.py")


def test_a_plugin_beside_the_config_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugins) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "plugin_of_mine.py").write_text(
        "import fbt_plugins\n@fbt_plugins.hookimpl\ndef fbt_register(registries):\n"
        "    registries.losses.register_module(name='MineLoss', module=dict)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "config.py").write_text("custom_imports = dict(imports=['plugin_of_mine'])\n")
    try:
        load_config(tmp_path / "config.py")
        assert plugins.registries.losses.owners["MineLoss"].name == "plugin_of_mine"
    finally:
        plugins.registries.losses.module_dict.pop("MineLoss", None)
        plugins.registries.losses.owners.pop("MineLoss", None)
