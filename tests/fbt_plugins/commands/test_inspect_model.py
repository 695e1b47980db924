"""tools/inspect_model.py: a model's stages, and its splices with another, for people and programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

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


def test_what_is_wrong_is_one_line(tool: Callable) -> None:
    for args, line in (
        (("resnte18",), "error: timm has no model 'resnte18'; did you mean 'resnet18'"),
        ((), "error: give a model's name, a --type that needs none, or --all"),
        (("--all", "--type", "module"), "error: --type module: no architecture that can name its models; known: timm"),
    ):
        done = tool("inspect_model", *args)
        assert done.code == 2 and done.err.startswith(line) and done.err.count("\n") == 1, done.err
