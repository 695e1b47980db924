"""Configs by path and by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fbt_plugins.config import locating
from fbt_plugins.config.loading import load_config
from fbt_plugins.config.locating import config_folder, find_config, shipped_configs, typed_config
from fbt_plugins.engine.teacher_run import TeacherRun
from fbt_plugins.errors import ConfigError

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
