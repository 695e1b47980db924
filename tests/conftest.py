"""Fixtures that several rooms share: tiny models, and plugins loaded once."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mmengine
import pytest
import torch
from forked import Done

from fbt_plugins import load_plugins
from fbt_plugins.distill.distiller import Distiller
from fbt_plugins.errors import TOOLS_FOLDER

# Ours as well where the entry point is not installed yet; fixtures of a conftest come before those of a plugin.
from fbt_plugins.testing.pytest_plugin import check_architecture, check_fusion, check_loss, isolated_plugins  # noqa: F401

torch.set_num_threads(1)

CNN = dict(type="timm", name="resnet18", num_classes=10, channels=(10, 20, 28, 40))
CONVNEXT = dict(type="timm", name="convnext_atto", num_classes=10, depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))
RESMLP = dict(type="timm", name="resmlp_s4_patch4_32", num_classes=10, embed_dim=16)
SWIN = dict(
    type="timm",
    name="swin_pico_patch4_window7_224",
    num_classes=10,
    img_size=32,
    window_size=2,
    embed_dim=8,
    depths=(2, 1, 1, 1),
    num_heads=(1, 2, 4, 8),
)
VIT = dict(
    type="timm",
    name="vit_tiny_patch16_224",
    num_classes=10,
    img_size=32,
    patch_size=8,
    embed_dim=24,
    depth=4,
    num_heads=3,
)
DEIT = dict(VIT, name="deit_tiny_distilled_patch16_224")

EDGES = ("teacher_to_student", "teacher_to_fusion", "fusion_to_student")
TASK = dict(type="CrossEntropyLoss")


def pytest_configure(config: pytest.Config) -> None:
    """Hides GPUs: tests compare bit by bit, and two processes of one test cannot share one; one thread per process."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if "gpu" not in config.getoption("markexpr"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """``--dist worksteal`` where none is asked for: long tests stand in a row, one process would be left with them."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getoption("dist") == "load" else None


@pytest.fixture(scope="session", autouse=True)
def plugins() -> Any:
    """The process's plugins."""
    return load_plugins()


@pytest.fixture(scope="session", autouse=True)
def unformatted() -> Any:
    """Configs are written as they are: yapf would take a third of a miniature run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mmengine.config.config, "FormatCode", lambda text, **_: (text, False))
        yield


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Runs ``tools/NAME.py`` as the command line does, in this process: importing torch again would take seconds."""
    root = Path(__file__).parents[1]

    def run(name: str, *args: object) -> Done:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [f"tools/{name}.py", *map(str, args)])
            patch.setattr(sys, "path", [*sys.path])  # which the tool changes, as it does the variable
            patch.setenv(TOOLS_FOLDER, "")
            capsys.readouterr()
            with pytest.raises(SystemExit) as ended:
                runpy.run_path(str(root / "tools" / f"{name}.py"), run_name="__main__")
        return Done(int(ended.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def images() -> torch.Tensor:
    """Five images of 32 x 32 pixels in [0, 1]."""
    return torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.tensor([0, 1, 2, 3, 9])


@pytest.fixture
def make() -> Callable[..., Distiller]:
    """Builds a distiller with FBT's edges and losses."""

    def build(
        student: dict[str, Any] = RESMLP,
        teacher: dict[str, Any] | None = CONVNEXT,
        splice: str | None = "auto",
        edges: Sequence[Any] = EDGES,
        **options: Any,
    ) -> Distiller:
        torch.manual_seed(0)
        defaults: dict[str, Any] = dict(
            feature_loss=dict(type="InfoNCELoss"),
            logit_loss=dict(type="OFALoss"),
            task_loss=TASK,
            fusion=dict(type="L2GFusion", splice=splice) if splice else None,
            image_size=(32, 32),
        )
        return Distiller(student, teacher, edges=edges, **(defaults | options))

    return build


@pytest.fixture
def config(tmp_path: Path) -> Any:
    """Builds the config of a run in a folder of its own."""
    from runs import builder  # which imports this file

    return builder(tmp_path)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The miniature run as it is without any options, finished: for all tests, so not to be changed."""
    from runs import builder, run

    return run(builder(tmp_path_factory.mktemp("whole"))())
