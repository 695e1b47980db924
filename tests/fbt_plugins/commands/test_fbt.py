"""The command `fbt`: its help, its commands, and those that show tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fbt_plugins import __version__, errors
from fbt_plugins.commands import MODULES, fbt
from fbt_plugins.commands.train import parse
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


# ---- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        ("--lanucher none", "unrecognized arguments: --lanucher none"),
        ("--seed x", "argument --seed: invalid int value: 'x'"),
        ("--amp fp8", "argument --amp: invalid choice: 'fp8'"),
        ("--launcher ssh", "argument --launcher: invalid choice: 'ssh'"),
        ("--cfg-options model", "--cfg-options 'model': write key=value"),
        ("--cfg-options =3", "--cfg-options '=3': write key=value"),
        ("--cfg-options a=(1,2", "--cfg-options 'a=(1,2': brackets do not match"),
        (
            "--cfg-options test_cfg=dict(k=3,l=4)",
            "--cfg-options 'test_cfg=dict(k=3,l=4)': a dict cannot be given; name its keys, each by itself, such as "
            "test_cfg.type=NAME (test_cfg.0.type=NAME of a list's item), or write it in a config file",
        ),
        ('--cfg-options a={"k":3}', "--cfg-options 'a={\"k\":3}': a dict cannot be given; name its keys"),
        ("--cfg-options a=[b,dict(k=3)]", "--cfg-options 'a=[b,dict(k=3)]': a dict cannot be given; name its keys"),
        ("--cfg-options a={}", "--cfg-options 'a={}': a dict cannot be given; name its keys"),
    ],
)
def test_wrong_arguments_are_one_line(typed: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse().parse_args(["config.py", *typed.split()])
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and line.startswith(f"error: {reason}")


def test_options_are_read_as_mmengine_reads_them() -> None:
    typed = ["a.b=1", "c=[x,2]", "d=None", "e=text", "f=(1,2)", "g=True", "h=1e-3"]
    args = parse().parse_args(["config.py", "--cfg-options", *typed, "--cfg-options", "a.b=2"])
    assert args.cfg_options == {"a.b": 2, "c": ["x", 2], "d": None, "e": "text", "f": (1, 2), "g": True, "h": 1e-3}
    assert args.cfg_options_typed == [*typed, "a.b=2"]


# ---- configs --------------------------------------------------------------------------------------------------------


CONFIGS = Path(__file__).parents[3] / "configs"
FILES = {path for path in CONFIGS.rglob("*.py") if "_base_" not in path.parts}


def test_each_config_is_listed_once_with_a_line_that_stands_alone(capsys: pytest.CaptureFixture[str]) -> None:
    fbt(["configs"])
    *lines, blank, folder = capsys.readouterr().out.splitlines()
    rows = [line.split(maxsplit=1) for line in lines]
    names = sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in FILES)
    assert sorted(name for name, _ in rows) == names and not blank and folder == f"in {CONFIGS}"
    assert not [about for _, about in rows if len(about) < 20 or about[-1] not in ".?"]
    assert max(map(len, lines)) <= 120


def test_programs_read_json(capsys: pytest.CaptureFixture[str]) -> None:
    fbt(["configs", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert {Path(row["path"]) for row in rows} == FILES
    assert all(Path(row["path"]) == CONFIGS / f"{row['name']}.py" and row["about"] for row in rows)


# ---- list plugins ---------------------------------------------------------------------------------------------------


def test_lists_names_with_plugin_and_version(tool: Callable) -> None:
    code, table, err = tool("list_plugins")
    assert code == 0 and not err and "InfoNCELoss" in table and "fbt-plugins" in table


def test_all_of_ours_loads(tool: Callable) -> None:
    code, text, err = tool("list_plugins", "--json")
    found = json.loads(text)
    rows = {(row["kind"], row["name"], row["plugin"]) for row in found["registered"]}
    assert code == 0 and not err
    assert {
        ("architecture", "timm", "architectures"),
        ("fusion", "L2GFusion", "fusions"),
        ("loss", "OFALoss", "losses"),
    } <= rows
    assert not [row for row in found["failed"] if row["distribution"] == "fbt-plugins"]


# ---- inspect model --------------------------------------------------------------------------------------------------


NETS = """
from torch import nn

def net(num_classes, width=4):
    blocks = [nn.Conv2d(3 if i == 0 else width, width, 2, 2) for i in range(4)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(width * 4, num_classes))
"""


def test_a_model_and_its_splices(tool: Callable, tmp_path: Path) -> None:
    done = tool(
        "inspect_model",
        "test_resnet", "--img-size", "32", "--num-classes", "10", "--against", "resmlp_s4_patch4_32",
        "--json", str(tmp_path / "found.json"),
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "test_resnet: cnn, declared cut, images of 32x32 pixels" in done.out
    assert "stages and head are the model bit for bit" in done.out and "S1-3+T4" in done.out
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found["parts"]) == 5 and len(found["splices"]) == 20 and found["proof"]["gradients"] > 0


def test_architectures_that_need_no_name(tool: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin's may be one network, as type="module" with a path is."""
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    options = ("--type", "module", "--options", "path=nets:net", "image_size=32", "--num-classes", "5")
    against = ("--against-type", "module", "--against-options", "path=nets:net", "image_size=32", "width=6")
    done = tool("inspect_model", *options, *against)
    assert done.code == 0, done.err
    assert "splices with nets:net as student and nets:net as teacher" in done.out and "S1-3+T4" in done.out


@pytest.mark.parametrize("option", ["--json", "--markdown", "--state"])
def test_where_it_is_written_is_looked_at_before_any_work(
    tool: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    way = tmp_path / "file"
    way.touch()
    monkeypatch.setattr("fbt_plugins.load_plugins", None)
    for file, reason in (
        (way / "x", f"it cannot be written ({way}: Not a directory)"),
        (tmp_path, "it is a folder; name a file"),
    ):
        done = tool("inspect_model", "--all", option, file)
        assert done.code == 2 and done.err == f"error: {option} {file}: {reason}\n"


def test_what_is_wrong_is_one_line(tool: Callable) -> None:
    for args, line in (
        (("resnte18",), "error: timm has no model 'resnte18'; did you mean 'resnet18'"),
        ((), "error: give a model's name, a --type that needs none, or --all"),
        (
            ("--all", "--type", "huggingfac"),
            "error: --type huggingfac: no architecture that can name its models; known: ",
        ),
        (
            ("--all", "--type", "module"),
            "error: --type module: its networks are those of libraries; name some with --lib",
        ),
        (
            ("--all", "--library", "no_such"),
            "error: --library no_such: no network of these is known here, or installed",
        ),
    ):
        done = tool("inspect_model", *args)
        assert done.code == 2 and done.err.startswith(line) and done.err.count("\n") == 1, done.err


def test_code_that_is_not_ours_does_not_end_the_program_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    """A data set, a hook or a metric of a plugin may call sys.exit; what we and argparse end keeps its code."""
    for argument in (0, "no data"):
        names = {"__name__": "acme.data", "argument": argument}
        exec(compile("import sys\ndef read(): sys.exit(argument)", "acme/data.py", "exec"), names)
        with pytest.raises(SystemExit) as ended:
            errors.run(names["read"])  # type: ignore[arg-type]
        line = (
            f"error: SystemExit: {argument} in acme.data.read (data.py:2): a plugin must not end the program; mend it"
        )
        assert ended.value.code == 2 and capsys.readouterr().err.strip() == line
    with pytest.raises(SystemExit) as ended:
        errors.run(lambda: fbt(["train", "--help"]))
    assert ended.value.code == 0
