"""A plugin like anyone's: it comes in by its entry point and needs only what the framework makes public.

Then: In a distiller: as teacher and as student, with FBT's fusion model between.
"""

import ast
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import fbt_huggingface
import pytest
import torch
from conftest import SMALL
from safetensors.torch import save_file

import fbt_plugins
from fbt_plugins import Batch, Distiller, authoring

SOURCES = sorted(Path(fbt_huggingface.__file__).parent.glob("*.py"))


def test_comes_in_by_its_own_entry_point(plugins: Any) -> None:
    (point,) = entry_points(group="fbt_plugins", name="huggingface")
    assert point.dist is not None and point.dist.name == "fbt-huggingface"
    assert plugins.loaded["huggingface"].distribution == "fbt-huggingface" and not plugins.failures
    assert plugins.registries.architectures.owners["huggingface"].name == "huggingface"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_only_public_names_are_imported(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not [a.name for a in node.names if a.name.split(".")[0] == "fbt_plugins"]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fbt_plugins":
            public = {"fbt_plugins": fbt_plugins.__all__, "fbt_plugins.authoring": authoring.__all__}
            assert node.module in public, f"line {node.lineno}: {node.module} is a submodule"
            assert {a.name for a in node.names} <= set(public[node.module]), f"line {node.lineno}"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "transformers":
            assert node.module == "transformers", f"line {node.lineno}: transformers moves its submodules"
        elif isinstance(node, ast.Attribute):  # of others; dunder names are Python's own
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            assert own or not node.attr.startswith("_") or node.attr.startswith("__"), (
                f"line {node.lineno}: {node.attr}"
            )


def test_loading_plugins_does_not_import_transformers() -> None:
    code = "import sys, fbt_plugins; fbt_plugins.load_plugins(); assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_file_is_long() -> None:
    assert all(len(path.read_text(encoding="utf-8").splitlines()) <= 400 for path in SOURCES)


def test_the_readmes_student_goes_back_to_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    config, back = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(config, names)
    student = fbt_plugins.ARCHITECTURES.build(names["model"]["student"] | {"num_classes": 10}).eval()
    monkeypatch.chdir(tmp_path)
    Path("work_dirs/NAME").mkdir(parents=True)
    save_file(student.net.state_dict(), "work_dirs/NAME/student.safetensors")
    exec(back, names)
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(names["model"].eval()(images).logits, student(images))


# ---- distiller ------------------------------------------------------------------------------------------------------


RESMLP = dict(type="timm", name="resmlp_s4_patch4_32", num_classes=7, embed_dim=16)
PAIRS = {
    "huggingface teaches timm": ("swin", None),
    "timm teaches huggingface": (None, "resnet"),
    "vit teaches convnext": ("vit", "convnext"),
    "convnext teaches dinov2": ("convnext", "dinov2_with_registers"),
    "beit teaches swin": ("beit", "swin"),
}


def model(name: str | None) -> dict[str, Any]:
    return (
        RESMLP
        if name is None
        else dict(type="huggingface", num_classes=7, input_size=64, **SMALL[name])
        | (dict(input_size=SMALL[name]["image_size"]) if "image_size" in SMALL[name] else {})
    )


@pytest.mark.parametrize("splice", ["S1-3+T4", "T1-3+S4"])
@pytest.mark.parametrize("pair", PAIRS)
def test_trains_with_a_fusion_model(pair: str, splice: str) -> None:
    teacher, student = map(model, PAIRS[pair])
    torch.manual_seed(0)
    distiller = Distiller(
        student,
        teacher,
        fusion=dict(type="L2GFusion", splice=splice),
        edges=["teacher_to_student", "teacher_to_fusion", "fusion_to_student"],
        feature_loss=dict(type="InfoNCELoss"),
        logit_loss=dict(type="OFALoss"),
        task_loss=dict(type="CrossEntropyLoss"),
        image_size=(32, 32),
    ).train()
    before = {k: v.clone() for k, v in distiller.teacher.state_dict().items()}
    losses = distiller.losses(torch.rand(4, 3, 32, 32), Batch(torch.tensor([0, 1, 2, 6])))
    assert len(losses) >= 7 and all(torch.isfinite(v) for v in losses.values())
    sum(losses.values()).backward()  # type: ignore[union-attr]
    without = [n for n, p in distiller.student.named_parameters() if p.grad is None]
    assert not [n for n in without if not n.endswith("mask_token")]
    assert all(p.grad is None for p in distiller.teacher.parameters())
    assert all(torch.equal(v, before[k]) for k, v in distiller.teacher.state_dict().items())
