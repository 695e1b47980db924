"""config.py: complete, readable, and the same run wherever it is read again."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from fbt_plugins.config.loading import Arguments, load_config, run_config
from fbt_plugins.config.writing import as_file
from fbt_plugins.errors import ConfigError, user_path

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
