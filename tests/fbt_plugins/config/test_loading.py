"""Configs: where they are, how they are read and merged, and what config.py says."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from fbt_plugins.config import locating
from fbt_plugins.config.loading import Arguments, load_config, run_config
from fbt_plugins.config.locating import config_folder, find_config, shipped_configs, typed_config
from fbt_plugins.config.merging import merge, merge_options
from fbt_plugins.config.options import DEFAULTS, Reference, WithoutTeacher, as_file
from fbt_plugins.engine.teacher_run import TeacherRun
from fbt_plugins.errors import ConfigError, user_path

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


# ---- merging --------------------------------------------------------------------------------------------------------


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
    config = dict(model=dict(teacher=dict(name="t"), loss=dict(a=1)), schedule=[dict(end=1), dict(end=2)])
    wrong = {
        "modle.teacher.name": "there is no modle in the config; did you mean 'model'?",
        "model.teachr.name": "there is no model.teachr in the config; did you mean 'teacher'?",
        "model.teacher.name.x": "model.teacher.name is 't', it has nothing below it",
        "schedule.7.end": "schedule is a list of 2; no item '7'",
    }
    with pytest.raises(ConfigError) as error:
        merge_options(config, dict.fromkeys(wrong, 3))
    assert error.value.problems == [f"--cfg-options {option}: {line}" for option, line in wrong.items()]


# ---- locating -------------------------------------------------------------------------------------------------------


CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is not the clone."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_clone_has_its_own_and_a_wheel_those_in_the_package(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert config_folder() == CONFIGS
    (elsewhere / "package" / "_configs" / "search").mkdir(parents=True)
    (elsewhere / "package" / "_configs" / "search" / "one.py").touch()
    monkeypatch.setattr(locating, "_PACKAGE", elsewhere / "package")
    assert find_config("search/one") == elsewhere / "package" / "_configs" / "search" / "one.py"


def test_every_config_has_a_name() -> None:
    found = shipped_configs()
    assert {"fbt_convnext_resmlp", "search/one_shot", "compare/sakd_vs_cakd", "teachers/cifar100"} < found.keys()
    assert set(found.values()) == {p for p in CONFIGS.rglob("*.py") if "_base_" not in p.parts}


@pytest.mark.parametrize("name", ["search/one_shot", "search/one_shot.py", "configs/search/one_shot.py"])
def test_a_name_is_found(name: str) -> None:
    assert find_config(name) == find_config(Path(name)) == CONFIGS / "search" / "one_shot.py"
    assert load_config(name).search.one_shot.best == 3


def test_a_path_wins(elsewhere: Path) -> None:
    for own in ("tiny.py", "tiny", "configs/tiny.py"):
        assert find_config(own) == CONFIGS / "tiny.py"
        (elsewhere / own).parent.mkdir(exist_ok=True)
        (elsewhere / own).write_text("model = 1")
        assert find_config(own) == Path(own)
    assert load_config("tiny.py").model == 1


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("fbt_convnext", "; did you mean 'fbt_convnext_resmlp'?"),
        ("search/oneshot", "; did you mean 'search/one_shot'"),
        ("sakd_vs_cakd.py", "; did you mean 'compare/sakd_vs_cakd'?"),
        ("studnt.py", "; did you mean 'student.py'?"),
        ("folder", ""),
        ("_base_/fbt", ""),
        ("../configs/tiny.py", ""),
        ("zzz", ""),
    ],
)
def test_what_is_neither_is_one_line(elsewhere: Path, given: str, near: str) -> None:
    (elsewhere / "folder").mkdir()
    (elsewhere / "student.py").touch()
    with pytest.raises(ConfigError) as caught:
        find_config(given)
    (line,) = caught.value.problems
    assert line.startswith(f"config {given!r}: no such file{near}")
    assert line.endswith(" (fbt configs lists the shipped ones)")


def test_configs_are_shown_as_one_types_them_here(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (elsewhere / "own.py").touch()
    assert typed_config(elsewhere / "own.py") == typed_config("own.py") == "own.py"
    assert typed_config(CONFIGS / "search" / ".." / "tiny.py") == "tiny"
    monkeypatch.chdir(CONFIGS.parent)
    assert typed_config(CONFIGS / "search" / ".." / "tiny.py") == "configs/tiny.py"
    assert typed_config(elsewhere / "own.py") == str(elsewhere / "own.py")


def test_configs_that_others_name_are_found_from_anywhere() -> None:
    student = load_config("cifar100", pair="swin-t_resnet18", method="fbt")
    run = TeacherRun(**student.teacher_run)
    assert run.command == "fbt train teachers/cifar100 --pair swin-t --method finetune"
    for name in (run.config, "teachers/cifar100", "configs/teachers/cifar100.py"):
        assert replace(run, config=name).load(student).publish == student.model.teacher.checkpoint


# ---- writing --------------------------------------------------------------------------------------------------------


CONFIG = """
model = dict(type="Distiller", student=dict(type="timm", name="resnet18"))
train_cfg = dict(by_epoch=True, max_epochs=2)
optim_wrapper = dict(optimizer=dict(type="AdamW", lr=0.001), clip_grad=dict(max_norm=1.0))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(CONFIG)
    return tmp_path / "mine.py"


def test_infinities_are_written_as_a_file_can_say_them(path: Path, tmp_path: Path) -> None:
    options = {"optim_wrapper.clip_grad.max_norm": math.inf, "model.student.drop_rates": [0.5, -math.inf, math.nan]}
    config = load_config(path, options)
    (tmp_path / "config.py").write_text(as_file(config))
    again = load_config(tmp_path / "config.py")
    assert again.optim_wrapper.clip_grad.max_norm == math.inf
    rates = again.model.student.drop_rates
    assert rates[:2] == [0.5, -math.inf] and math.isnan(rates[2])


def test_a_start_is_not_in_the_file_but_seed_and_precision_are(path: Path, tmp_path: Path) -> None:
    started = Arguments(
        work_dir="work_dirs/x", launcher="pytorch", resume=True, device="cpu", seed=4, amp="bf16", command="fbt train"
    )
    config = run_config(path, arguments=started)
    (tmp_path / "config.py").write_text(as_file(config))
    again = load_config(tmp_path / "config.py")
    assert not {"work_dir", "launcher", "resume", "device", "command"} & set(again)
    assert again.randomness.seed == 4 and again.optim_wrapper.precision == "bf16"
    assert again.model == config.model
    assert "work_dir" in as_file(config, keep=("work_dir",))


def test_a_circle_of_bases_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.py").write_text('_base_ = ["deep/b.py"]\n')
    (tmp_path / "deep" / "b.py").write_text('_base_ = "../a.py"\n')
    with pytest.raises(ConfigError, match=r"its _base_ leads back to itself: a\.py -> deep/b\.py -> a\.py$"):
        load_config("a.py")


def test_a_tilde_is_ones_home_in_every_path(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = run_config(
        "~/mine.py",
        {"load_from": "~/w.pth", "publish": "~/t.safetensors"},
        arguments=Arguments(work_dir="~/x", resume="~/r"),
    )
    assert config.work_dir == f"{tmp_path}/x" and config.resume == f"{tmp_path}/r"
    assert config.load_from == f"{tmp_path}/w.pth" and config.publish == f"{tmp_path}/t.safetensors"
    assert user_path("~/o") == tmp_path / "o" and user_path("a~/b") == Path("a~/b")


@pytest.mark.parametrize("given", ["./tiny", "/nowhere/tiny.py", "../tiny.py"])
def test_a_path_that_is_not_there_is_no_shipped_config(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ConfigError, match="no such file"):
        find_config(given)


@pytest.mark.parametrize(("text", "kind"), [("", "NoneType"), ("- 1\n", "list")])
def test_a_yaml_file_without_keys_is_one_line(text: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=f"its contents are {kind}, not keys and values"):
        load_config(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("c.yaml", "a:\n  b: 1\n  c: 2\n  b: 3\n", "the key 'b' is in line 2 and again in line 4; keep one of them"),
        ("c.yaml", "a: {b: 1, b: 2}\n", "the key 'b' is in line 1 and again in line 1"),
        ("c.json", '{"a": {"b": 1, "b": 2}}', "a dict has the key 'b' twice; keep one of them"),
    ],
)
def test_a_key_that_is_there_twice_is_refused(file: str, text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(text)
    (tmp_path / "child.py").write_text(f"_base_ = {file!r}\n")
    for name in (file, "child.py"):
        with pytest.raises(ConfigError, match=f"{name}: it or its _base_: {says}"):
            load_config(tmp_path / name)


def test_yaml_may_merge_mappings_that_share_keys(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("one: &one {a: 1, b: 2}\ntwo: {<<: *one, b: 3}\n")
    assert load_config(tmp_path / "c.yaml").two == dict(a=1, b=3)


def test_figures_to_compare_with_are_figures() -> None:
    shipped = WithoutTeacher(top1=80.5, std=0, seeds=1, training="c0ffee", command="fbt train")
    for name, wrong in dict(top1=(800, -1, math.nan), std=(-1, math.nan, math.inf), seeds=(0, -2, 2.5, True)).items():
        for value in wrong:
            with pytest.raises(ConfigError, match=f"^without_teacher: {name} is .*, not {value!r}$"):
                replace(shipped, **{name: value})
    with pytest.raises(ConfigError) as error:
        replace(shipped, top1=800, std=-1, seeds=0)
    assert len(error.value.problems) == 3
    for top1 in (800, -1, math.nan):
        with pytest.raises(ConfigError, match=f"^reference: top1 is in percent, from 0 to 100, not {top1!r}$"):
            Reference(top1, "a table")
