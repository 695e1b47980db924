"""From arguments to a run that is checked and can begin."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import TINY

from fbt_plugins.config.loading import Arguments
from fbt_plugins.engine.plan import Plan
from fbt_plugins.errors import ConfigError


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text(TINY)
    return Path("tiny.py")


def test_arguments_are_put_over_the_config(tiny: Path) -> None:
    arguments = Arguments(
        "there", resume="auto", device="cpu", seed=7, amp="fp16", compile=True, command="what I typed"
    )
    config = Plan.of(tiny, {"randomness.seed": 5, "train_cfg.max_epochs": 1}, arguments=arguments).config
    assert (config.work_dir, config.resume, config.device, config.command) == ("there", "auto", "cpu", "what I typed")
    assert (config.randomness.seed, config.optim_wrapper.precision, config.compile) == (7, "fp16", True)
    assert (config.train_cfg.max_epochs, config.launcher) == (1, "none")


def test_without_arguments_the_configs_values_stay(tiny: Path) -> None:
    config = Plan.of(tiny, {"compile": {"mode": "default"}}).config
    assert (config.work_dir, config.device, config.randomness.seed) == ("work_dirs/tiny", "cpu", 3)
    assert config.compile == {"mode": "default"} and "command" not in config and "resume" not in config
    compiled = Plan.of(tiny, {"compile": {"mode": "default"}, "work_dir": "mine"}, arguments=Arguments(compile=True))
    assert compiled.config.compile == {"mode": "default"} and compiled.config.work_dir == "mine"


def test_it_says_what_would_run_and_touches_nothing(tiny: Path) -> None:
    plan = Plan.of(tiny)
    assert [line.split(":")[0] for line in plan.lines()] == [
        "student resmlp_s4_patch4_32",
        "teacher convnext_atto",
        "fusion",
    ]
    assert all(line.endswith("classes 10") for line in plan.lines()[:2])
    assert {parameter.device.type for parameter in plan.distiller.parameters()} == {"meta"}
    assert list(Path().iterdir()) == [tiny]


def test_a_plan_is_never_of_a_wrong_config(tiny: Path) -> None:
    with pytest.raises(ConfigError, match=r"^tiny.py: unknown key 'wrong'"):
        Plan.of(tiny, {"wrong": 1})
