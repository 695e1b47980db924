"""Config files: what of them is read, and what is said of one that cannot be."""

from pathlib import Path

import pytest

from fbt_plugins.config.loading import load_config
from fbt_plugins.config.options import DEFAULTS
from fbt_plugins.errors import ConfigError

WRONG = {
    "model = dict(\n": "was never closed",
    "x = 1 / 0\n": "ZeroDivisionError",
    "_base_ = 'nowhere.py'\n": "nowhere.py",
    "custom_imports = dict(imports=['no_such_plugin'])\n": "custom_imports: plugin 'no_such_plugin",
    "custom_imports = ['no_such_plugin']\n": "custom_imports: write dict(imports=['module', ...]), not",
    "import os\nmodel = dict()\n": "lazy config",
    "pairs = dict(a_b=dict())\n": "methods: expected a dict of dicts by name",
}


@pytest.mark.parametrize(("text", "reason"), WRONG.items(), ids=WRONG.values())
def test_a_wrong_file_is_named_with_what_is_wrong(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "mine.py")
    (line,) = caught.value.problems
    assert reason in line and "mine.py" in line and "\n" not in line


def test_an_option_that_has_no_place_in_the_file_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("fbt_convnext_resmlp", {"default_hooks.chekpoint.interval": 1})
    assert caught.value.problems == [
        "--cfg-options default_hooks.chekpoint.interval: there is no default_hooks.chekpoint in the config; "
        "did you mean 'checkpoint' or 'plain_checkpoint'?"
    ]


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
