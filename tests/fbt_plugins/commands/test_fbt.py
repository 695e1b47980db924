"""``fbt`` itself: its commands, what it says of them, and what is typed where."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fbt_plugins import __version__
from fbt_plugins.commands import MODULES, fbt
from fbt_plugins.errors import TOOLS, TOOLS_FOLDER, FBTError, typed

ROOT = Path(__file__).parents[3]
ALL_HELP = f"""
import sys
from fbt_plugins.commands import fbt

for argv in [["--help"], ["--version"], ["configs"], *([name, "--help"] for name in {list(MODULES)}), ["train"]]:
    try:
        fbt(argv)
    except SystemExit as end:
        assert end.code == (2 if argv == ["train"] else 0), argv
    found = {{"torch", "rich", "mmengine", "timm", "optuna", "matplotlib"}} & sys.modules.keys()
    assert not found, (argv, found)
"""


def python(*args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key != TOOLS_FOLDER} | variables
    return subprocess.run([sys.executable, *args], cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands put the working folder on it."""
    monkeypatch.setattr(sys, "path", [*sys.path])


def test_help_has_a_line_for_each_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert fbt(["--help"]) == fbt([]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in MODULES:
        about = [line.split(maxsplit=1)[1] for line in lines if line.startswith(f"  {name} ")]
        assert len(about) == 2 and about[0].endswith(".")
    assert max(map(len, lines)) <= 120


def test_help_and_usage_errors_import_nothing_heavy() -> None:
    done = python("-c", ALL_HELP)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", MODULES)
def test_a_command_says_what_to_type(
    name: str, tool: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(TOOLS_FOLDER, raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="0"):
        fbt([name, "--help"])
    helped = capsys.readouterr().out
    assert f"usage: fbt {name} [-h]" in helped and "\nexample" in helped and f"\n  fbt {name} " in helped
    assert "tools/" not in helped and "configs/" not in helped.replace("configs/_base_", "")
    if name in TOOLS:
        monkeypatch.chdir(ROOT)
        code, helped, _ = tool(TOOLS[name].removesuffix(".py"), "--help")
        here = f"python {ROOT}/tools/{TOOLS[name]}"
        assert code == 0 and f"usage: {here} [-h]" in helped and f"\n  {here} " in helped and "\n  fbt " not in helped


def test_tools_has_a_short_file_for_each() -> None:
    files = {path.name: path.read_text() for path in (ROOT / "tools").iterdir() if path.is_file()}
    assert files.keys() == set(TOOLS.values())
    assert not [name for name, text in files.items() if len([line for line in text.splitlines() if line]) > 4]


def test_an_unknown_command_is_one_line_with_the_nearest() -> None:
    for name, near in (
        ("trian", "did you mean 'train'?"),
        ("list-plugins", "did you mean 'plugins'"),
        ("--zzz", ""),
    ):
        done = python("-c", "from fbt_plugins.commands import main; main()", name)
        assert done.returncode == 2 and not done.stdout
        assert done.stderr.startswith(f"error: fbt {name}: no such command") and near in done.stderr
        assert done.stderr.count("\n") == 1 and done.stderr.endswith("(see fbt --help)\n")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    fbt(["--version"])
    assert capsys.readouterr().out == f"fbt-plugins {__version__}\n"


def test_processes_speak_as_the_one_that_started_them() -> None:
    """What ``compare`` starts says what its user types; ``fbt`` typed by hand says ``fbt``."""
    module = ("-m", "fbt_plugins.commands", "train")
    assert python(*module).stderr.endswith("(see fbt train --help)\n")
    assert python(*module, **{TOOLS_FOLDER: "a b"}).stderr.endswith("(see python 'a b/train.py' --help)\n")
    main = ("-c", "from fbt_plugins.commands import main; main()", "train")
    assert python(*main, **{TOOLS_FOLDER: "tools"}).stderr.endswith("(see fbt train --help)\n")


def test_what_is_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOOLS_FOLDER, raising=False)
    launched = "torchrun --nproc_per_node 2 --no-python fbt train X; srun fbt inspect X; fbt configs"
    assert typed(launched) == launched
    assert typed("fbt train", "a b.py", "--check") == "fbt train 'a b.py' --check"
    monkeypatch.setenv(TOOLS_FOLDER, "../clone/tools")
    tools = "python ../clone/tools"
    assert typed(launched) == (
        f"torchrun --nproc_per_node 2 ../clone/tools/train.py X; srun {tools}/inspect_model.py X; fbt configs"
    )
    assert typed("'fbt new-plugin'", "fbt train") == f"'{tools}/new_plugin.py' 'fbt train'"
    assert typed("work_dirs/fbt train, fbt trainer, fbt train-x") == "work_dirs/fbt train, fbt trainer, fbt train-x"


def test_an_error_of_a_command_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FBTError, match=r"^config 'fbt_convnet_resmlp': no such file; did you mean 'fbt_convnext_resmlp'"
    ):
        fbt(["train", "fbt_convnet_resmlp"])
