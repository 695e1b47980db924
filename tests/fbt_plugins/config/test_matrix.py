"""Matrices, and the options and hash of a run's config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from runs import TINY, run

from fbt_plugins.config.hashing import config_hash
from fbt_plugins.config.loading import complete, default_work_dir, load_config, load_matrix
from fbt_plugins.config.matrix import Matrix
from fbt_plugins.config.options import OPTIONS
from fbt_plugins.engine.hooks.ema import EMAHook
from fbt_plugins.errors import ConfigError

TABLES = """
pairs = dict(
    a_b=dict(reference=dict(kd=dict(top1=71.5, source="a table")), train_dataloader=dict(batch_size=4)),
    a_c=dict(methods=dict(kd=dict(model=dict(logit_loss=dict(temperature=2.0))))),
)
methods = dict(
    scratch=dict(model=dict(teacher=None, fusion=None, edges=[], feature_loss=None, logit_loss=None)),
    kd=dict(
        about="KD",
        model=dict(
            fusion=None,
            edges=["teacher_to_student"],
            feature_loss=None,
            logit_loss=dict(type="KDLoss", temperature=4.0),
        ),
    ),
    t_s=dict(pairs="*_c", seeds=[3], model=dict(fusion=None, edges=["teacher_to_student"])),
    either=dict(best_of={0: ["kd", "scratch"]}),
)
seeds = [0, 5]
controls = dict(kd="KD")
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "grid.py").write_text(TINY + TABLES)
    return tmp_path / "grid.py"


def test_pair_then_method_then_what_the_pair_has_for_the_method(path: Path) -> None:
    config = load_config(path, pair="a_b", method="kd")
    assert config.model.logit_loss == dict(type="KDLoss", temperature=4.0)  # OFA's gamma is gone with its type
    assert config.train_dataloader.batch_size == 4 and config.model.fusion is None
    assert config.cell == dict(pair="a_b", method="kd", about="KD")
    assert config.reference == dict(top1=71.5, source="a table")
    other = load_config(path, {"randomness.seed": 5}, pair="a_c", method="kd")
    assert other.model.logit_loss.temperature == 2.0 and other.train_dataloader.batch_size == 8
    assert other.reference is None
    assert not {"pairs", "methods", "seeds", "controls"} & set(other)
    assert default_work_dir(path, other) == "work_dirs/grid/a_c/kd/seed_5"


def test_cells_are_those_that_suit(path: Path) -> None:
    matrix = load_matrix(path)
    assert matrix.cells() == [("a_b", "scratch"), ("a_b", "kd"), ("a_c", "scratch"), ("a_c", "kd"), ("a_c", "t_s")]
    assert matrix.cells(["a_c"], ["t_s", "kd"]) == [("a_c", "kd"), ("a_c", "t_s")]
    with pytest.raises(ConfigError, match="none of the methods t_s is for these pairs"):
        matrix.cells(["a_b"], ["t_s"])


def test_seeds_of_a_method_and_methods_without_runs(path: Path) -> None:
    matrix = load_matrix(path)
    assert [list(matrix.seeds_of(name)) for name in ("kd", "t_s")] == [[0, 5], [3]]
    assert "seeds" not in matrix.cell("a_c", "t_s")
    assert matrix.best_of == {"either": {0: ["kd", "scratch"]}}
    assert matrix.cells(["a_c"], ["either"]) == [("a_c", "scratch"), ("a_c", "kd")]
    with pytest.raises(ConfigError, match="'either' is the best of others, and has no runs of its own"):
        matrix.cell("a_b", "either")


@pytest.mark.parametrize(
    ("pair", "method", "reason"),
    [
        (None, None, r"it is a matrix: say which run, with --pair \(one of a_b, a_c\) and --method \(one of scratch,"),
        ("a_b", None, "say which run"),
        ("a_d", "kd", "no pair 'a_d'; did you mean"),
        ("a_b", "kdd", "no method 'kdd'; did you mean 'kd'"),
        ("a_b", "t_s", r"'t_s' is for the pairs '\*_c', not for 'a_b'"),
    ],
)
def test_a_cell_that_is_not_there_is_one_line(path: Path, pair: str | None, method: str | None, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        load_config(path, pair=pair, method=method)
    assert len(caught.value.problems) == 1 and caught.value.problems[0].startswith(f"config {path}: ")


def test_a_plain_config_has_no_cells(path: Path) -> None:
    path.write_text(TINY)
    with pytest.raises(ConfigError, match=r"no matrix .* drop --pair and --method"):
        load_config(path, pair="a_b")
    with pytest.raises(ConfigError, match="no matrix"):
        load_matrix(path)


@pytest.mark.parametrize(
    ("tables", "reason"),
    [
        (dict(pairs={"a": {}}), "methods: expected a dict of dicts by name, got None"),
        (dict(pairs=["a"], methods={"m": {}}), r"pairs: expected a dict of dicts by name, got \['a'\]"),
        (dict(pairs={"a": {}}, methods={"m": 3}), "methods: expected a dict of dicts"),
        (dict(pairs={"a": {}}, methods={"m": {}}, seeds=["0"]), "seeds: expected a list of different whole numbers"),
        (dict(pairs={"a": {}}, methods={"m": {}}, seeds=[0, 1, 0]), r"seeds: expected .* got \[0, 1, 0\]"),
        (dict(seeds=[1]), "pairs: expected"),
        (dict(pairs={"a": {}}, methods={"kd": {}}, controls=["kd"]), r"controls: expected a dict of words by method"),
        (
            dict(pairs={"a": {}}, methods={"m": dict(seeds=3)}),
            "methods.m.seeds: expected a list of different whole numbers from 0 to .*, got 3",
        ),
        (dict(pairs={"a": {}}, methods={"m": {}}, seeds=[0, -1]), r"seeds: expected .* from 0 to .*, got \[0, -1\]"),
        (
            dict(pairs={"a": {}}, methods={"m": dict(best_of=["n"])}),
            "m.best_of: expected a dict of lists of methods by",
        ),
        (dict(pairs={"a": {}}, methods={"kd": {}, "m": dict(best_of={0: ["kdd"]})}), "'kdd' with runs; did you mean"),
        (
            dict(pairs={"a": {}}, methods={"kd": {}, "m": dict(best_of={1: ["kd", "kd"]})}),
            "methods.m.best_of: 1: 'kd' is there twice",
        ),
        (dict(pairs={"a": {}}, methods={"kd": {}, "m": dict(best_of={0: ["m"]})}), "no method 'm' with runs"),
        (dict(pairs={"a": {}}, methods={"kd": {}}, controls={"kdd": "KD"}), "no method 'kdd'; did you mean 'kd'"),
    ],
)
def test_tables_of_another_form_are_refused(tables: dict, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Matrix.of(tables)


def test_a_cells_run_stands_by_itself(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config(path, {"train_cfg.max_epochs": 1}, pair="a_b", method="kd")
    config.work_dir = str(tmp_path / "run")
    run(config)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["reference"] == dict(top1=71.5, source="a table")
    assert summary["cell"] == dict(pair="a_b", method="kd", about="KD")
    shown = f"published 71.50 % (a table); here {summary['student_top1']:.2f} %"
    assert shown in capsys.readouterr().out
    again = load_config(tmp_path / "run" / "config.py")
    starts = {key for key, option in OPTIONS.items() if option.of_the_start}
    assert again.to_dict() == {key: value for key, value in config.to_dict().items() if key not in starts}


def test_a_child_of_a_matrix_changes_all_of_its_runs(path: Path, tmp_path: Path) -> None:
    child = """
_base_ = "grid.py"
train_cfg = dict(max_epochs=1)
train_dataloader = dict(batch_size=2)
model = dict(logit_loss=dict(temperature=3.0))
pairs = dict(a_c=dict(train_dataloader=dict(batch_size=6)))
"""
    (tmp_path / "short.py").write_text(child)
    config = load_config(tmp_path / "short.py", pair="a_b", method="kd")
    assert config.train_cfg.max_epochs == 1 and config.train_dataloader.batch_size == 2  # the pair's was 4
    assert config.model.logit_loss == dict(type="KDLoss", temperature=3.0)
    assert config.model.fusion is None and config.reference.top1 == 71.5  # what it does not speak of stays
    other = load_config(tmp_path / "short.py", pair="a_c", method="kd")
    assert other.model.logit_loss.temperature == 3.0  # not what a_c has for kd
    assert other.train_dataloader.batch_size == 6  # the child's own table comes last
    assert load_config(path, pair="a_b", method="kd").train_dataloader.batch_size == 4


def test_a_child_that_changes_a_type_drops_the_inherited_arguments_of_all_cells(path: Path, tmp_path: Path) -> None:
    child = '_base_ = "grid.py"\nmodel = dict(logit_loss=dict(type="DKDLoss", beta=2.0))\n'
    (tmp_path / "dkd.py").write_text(child)
    config = load_config(tmp_path / "dkd.py", pair="a_b", method="kd")
    assert config.model.logit_loss == dict(type="DKDLoss", beta=2.0)


@pytest.mark.parametrize("name", ["../../x", "/x", "..", "a\\b", "", 3])
def test_names_that_would_leave_the_runs_folder_are_refused(name: object) -> None:
    with pytest.raises(ConfigError, match=r"methods: .* cannot be a folder's name"):
        Matrix.of(dict(pairs=dict(a_b={}), methods={name: {}}))
    with pytest.raises(ConfigError, match=r"pairs: .* cannot be a folder's name"):
        Matrix.of(dict(pairs={name: {}}, methods=dict(kd={})))


# ---- options --------------------------------------------------------------------------------------------------------


CONFIG = complete(
    dict(
        model=dict(type="Distiller", student=dict(type="timm", name="resnet18")),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        train_dataloader=dict(batch_size=8, dataset=dict(type="ImageFolder", root="/data/images")),
        optim_wrapper=dict(optimizer=dict(type="AdamW", lr=0.001)),
    ),
    {},
)


def test_the_hash_of_a_config_never_changes() -> None:
    """Committed results are known by it: if this fails, give a new option no default, and change no old one's."""
    assert config_hash(CONFIG) == "c739b6457f13133f"


@pytest.mark.parametrize("key", OPTIONS)
def test_only_what_affects_results_is_in_the_hash(key: str) -> None:
    value: Any = {"deterministic": True} if key == "randomness" else "something"
    assert (config_hash({**CONFIG, key: value}) != config_hash(CONFIG)) == OPTIONS[key].affects_results


def test_the_seed_and_the_place_of_the_data_are_not_in_the_hash() -> None:
    loader = CONFIG["train_dataloader"]
    elsewhere = {**loader, "dataset": {**loader["dataset"], "root": "/elsewhere"}}
    assert config_hash({**CONFIG, "randomness": {"seed": 7}, "train_dataloader": elsewhere}) == config_hash(CONFIG)
    assert config_hash({**CONFIG, "train_dataloader": {**loader, "batch_size": 9}}) != config_hash(CONFIG)


def test_each_option_says_what_it_is_and_what_it_makes_is_there() -> None:
    for key, option in OPTIONS.items():
        assert option.about and "\n" not in option.about, key
        assert (option.makes is None) == (option.factory is None) and (option.makes is None or callable(option.factory))


def test_hooks_are_made_of_those_options_that_are_on() -> None:
    assert {key for key, option in OPTIONS.items() if option.hook({})} == {"teacher_cache", "ema"}
    hook = OPTIONS["ema"].hook({"decay": 0.5})
    assert isinstance(hook, EMAHook) and hook.decay == 0.5
    assert OPTIONS["ema"].hook(None) is None
