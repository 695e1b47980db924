"""tools/inspect_model.py: a model's stages, and its splices with another, for people and programs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def inspect(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "tools/inspect_model.py", *args], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def test_a_model_and_its_splices(tmp_path: Path) -> None:
    done = inspect(
        "test_resnet", "--img-size", "32", "--num-classes", "10", "--against", "resmlp_s4_patch4_32",
        "--json", str(tmp_path / "found.json"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "test_resnet: cnn, declared cut, images of 32x32 pixels" in done.stdout
    assert "stages and head are the model bit for bit" in done.stdout and "S1-3+T4" in done.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found["parts"]) == 5 and len(found["splices"]) == 20 and found["proof"]["gradients"] > 0


def test_what_is_wrong_is_one_line() -> None:
    for args, line in (
        (("resnte18",), "error: timm has no model 'resnte18'; did you mean 'resnet18'"),
        ((), "error: give a model's name, or --all"),
        (("--all", "--type", "module"), "error: --type module: no architecture that can name its models; known: timm"),
    ):
        done = inspect(*args)
        assert done.returncode == 2 and done.stderr.startswith(line) and done.stderr.count("\n") == 1, done.stderr
