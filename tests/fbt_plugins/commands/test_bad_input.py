"""What users get wrong, typed to its end: one line each, exit code 2, no traceback, and what would be right.

All that can be wrong with a config is in engine/test_check.py, with a config file in config/test_loading.py, with
arguments in test_arguments.py.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from forked import ROOT, typed

pytest.importorskip("optuna")
pytest.importorskip("matplotlib")

CONFIGS = ROOT / "configs"
FLAGSHIP = CONFIGS / "fbt_convnext_resmlp.py"
TYPED: list[tuple[list[object], list[str]]] = [
    (
        ["train", FLAGSHIP, "--check", "--cfg-options", "model.logit_loss.gama=1.2"],
        [f"{FLAGSHIP}: model.logit_loss: OFALoss: no argument 'gama'; did you mean 'gamma'"],
    ),
    (
        ["train", FLAGSHIP, "--cfg-options", "train_cfg.max_epoch=1", "device=tpu"],
        [f"{FLAGSHIP}: train_cfg: unknown key 'max_epoch'; did you", f"{FLAGSHIP}: device: device 'tpu': not a device"],
    ),
    (["train", "broken.py"], ["config broken.py, line 1: '(' was never closed"]),
    (
        ["train", FLAGSHIP.with_name("fbt_convnext_resmpl.py")],
        [f"config '{CONFIGS}/fbt_convnext_resmpl.py': no such file; did you mean 'fbt_convnext_resmlp.py'"],
    ),
    (
        ["train", CONFIGS / "cifar100.py", "--pair", "swin_resnet18", "--method", "fbt"],
        [f"config {CONFIGS}/cifar100.py: no pair 'swin_resnet18'; did you mean 'swin-t_resnet18'"],
    ),
    (["train", FLAGSHIP, "--seed", "x"], ["argument --seed: invalid int value: 'x' (see python "]),
    (["compare", FLAGSHIP], [f"config {FLAGSHIP}: it is no matrix"]),
    (
        ["search", FLAGSHIP],
        [f"config {FLAGSHIP}: it has no search=dict(space={{...}}): there is nothing to choose from"],
    ),
    (
        ["choose", CONFIGS / "fashion_mnist_tuning.py"],
        ["work_dirs/compare/fashion_mnist_tuning: no finished runs; expected is a trials.jsonl"],
    ),
    (
        ["benchmark", CONFIGS / "tinny.py"],
        [f"config '{CONFIGS}/tinny.py': no such file; did you mean 'tiny.py'"],
    ),
    (["inspect_model", "resnte18"], ["timm has no model 'resnte18'; did you mean 'resnet18'"]),
    (["list_plugins", "--jsn"], ["unrecognized arguments: --jsn"]),
    (["new_plugin", "class"], ["'class' cannot be a package's name"]),
    (["rank_splices", "nowhere"], ["nowhere: no finished runs"]),
]


@pytest.mark.parametrize(("command", "lines"), TYPED, ids=lambda x: " ".join(Path(str(word)).name for word in x))
def test_it_is_said_in_a_line_each(tmp_path: Path, command: list[object], lines: list[str]) -> None:
    (tmp_path / "broken.py").write_text("model = dict(\n")
    name, *args = command
    code, out, err = typed(ROOT / "tools" / f"{name}.py", *args, cwd=tmp_path)
    found = err.splitlines()
    assert code == 2 and not out and len(found) == len(lines), err
    assert all(line.startswith(f"error: {start}") for line, start in zip(found, lines, strict=True)), err


def test_debug_shows_where_it_came_from(tmp_path: Path) -> None:
    done = typed(ROOT / "tools" / "train.py", "nowhere.py", cwd=tmp_path, env={**os.environ, "FBT_DEBUG": "1"})
    assert done.code == 1 and "Traceback" in done.err and "find_config" in done.err
