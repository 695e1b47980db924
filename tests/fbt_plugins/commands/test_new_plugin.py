"""tools/new_plugin.py, and what others see of a plugin that is installed and broken."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def process(name: str, *args: object, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a tool, with a folder on the path as if it were site-packages."""
    env = dict(os.environ)
    if path is not None:
        env["PYTHONPATH"] = os.pathsep.join([str(path), *filter(None, [env.get("PYTHONPATH")])])
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, args)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


def install(folder: Path, distribution: str, module: str) -> None:
    """What pip leaves in site-packages of a plugin, beside its code."""
    info = folder / f"{distribution.replace('-', '_')}-0.3.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 0.3\n")
    (info / "entry_points.txt").write_text(f"[fbt_plugins]\n{distribution} = {module}\n")


def test_a_package_has_its_files_and_its_own_names(tool: Callable, tmp_path: Path) -> None:
    done = tool("new_plugin", "Acme.Parts", "--into", tmp_path)
    assert done.code == 0 and "--check" in done.out, done.err
    folder = tmp_path / "acme-parts"
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    parts = {f"src/acme_parts/{part}.py" for part in ("__init__", "backbone", "fusion", "loss")}
    assert files == parts | {"README.md", "pyproject.toml", "configs/acme_parts.py", "tests/test_acme_parts.py"}
    assert not [f for f in files if re.search("my.?parts", (folder / f).read_text(), re.IGNORECASE)]


@pytest.mark.slow
def test_two_generated_packages_live_side_by_side(tool: Callable, tmp_path: Path) -> None:
    for name in ("acme-parts", "Other.Parts"):
        assert tool("new_plugin", name, "--into", tmp_path).code == 0
    for name in ("acme-parts", "other-parts"):
        folder, module = tmp_path / name, name.replace("-", "_")
        install(folder / "src", name, module)
    both = Path(os.pathsep.join(str(tmp_path / name / "src") for name in ("acme-parts", "other-parts")))
    found = json.loads(process("list_plugins", "--json", path=both).stdout)
    named = {(r["name"], r["distribution"]) for r in found["registered"]}
    assert {
        ("acme_parts_net", "acme-parts"),
        ("AcmePartsFusion", "acme-parts"),
        ("AcmePartsLoss", "acme-parts"),
    } < named
    assert {("other_parts_net", "other-parts"), ("OtherPartsLoss", "other-parts")} < named and not found["failed"]
    done = process("train", tmp_path / "acme-parts" / "configs" / "acme_parts.py", "--check", path=both)
    assert done.returncode == 0, done.stderr
    assert "nothing wrong" in done.stdout and "student acme_parts_net" in done.stdout


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("torch", "there is a module 'torch' already; choose another name"),
        ("fbt-plugins", "there is a module 'fbt_plugins' already"),
        ("json", "there is a module 'json' already"),
        ("9lives", "begin with a letter and use letters, digits and dashes"),
        ("acme parts", "cannot be a package's name"),
        ("acme/parts", "cannot be a package's name"),
        ("class", "cannot be a package's name"),
        ("taken", "is there already; choose another name or folder"),
    ],
)
def test_a_name_that_will_not_do_is_refused(tool: Callable, tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "taken").mkdir()
    done = tool("new_plugin", name, "--into", tmp_path)
    assert done.code == 2 and reason in done.err and done.err.count("\n") == 1, done.err
    assert [p.name for p in tmp_path.rglob("*")] == ["taken"]


def test_a_missing_folder_is_refused(tool: Callable, tmp_path: Path) -> None:
    done = tool("new_plugin", "acme-parts", "--into", tmp_path / "nowhere")
    assert done.code == 2 and "no such folder" in done.err


@pytest.mark.slow
def test_a_broken_plugin_that_is_installed_disturbs_nobody(tmp_path: Path) -> None:
    install(tmp_path, "acme-parts", "acme_parts")
    (tmp_path / "acme_parts.py").write_text("import acme_core\n")
    line = (
        "plugin 'acme-parts' (acme-parts 0.3) failed to load: ModuleNotFoundError: No module named 'acme_core'; "
        "pip install acme_core, which acme-parts needs"
    )
    listed = process("list_plugins", path=tmp_path)
    assert listed.returncode == 0 and not listed.stderr
    assert f"failed: {line}" in listed.stdout and "InfoNCELoss" in listed.stdout
    flagship = ROOT / "configs" / "fbt_convnext_resmlp.py"
    good = process("train", flagship, "--check", path=tmp_path)
    assert good.returncode == 0 and not good.stderr and "acme" not in good.stdout
    missed = process("train", flagship, "--check", "--cfg-options", "model.logit_loss.type=AcmeLoss", path=tmp_path)
    assert missed.returncode == 2 and missed.stderr.count("\n") == 1 and "Traceback" not in missed.stderr
    assert "'AcmeLoss' is not a registered loss" in missed.stderr and line in missed.stderr
