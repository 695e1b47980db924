"""The pages' own code works as it stands."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from forked import typed
from mmengine.registry import DATASETS, HOOKS, METRICS, TRANSFORMS
from runs import builder, run
from torch import nn

import fbt_plugins
from fbt_plugins.data import FashionMNISTMini, build_transforms
from fbt_plugins.distill.distiller import Distiller
from fbt_plugins.engine.loaders import build_loader, loader_problems
from fbt_plugins.models.knowledge import Batch, Knowledge
from fbt_plugins.registry.loading import Plugins, load_plugins
from fbt_plugins.registry.registries import LOSSES
from fbt_plugins.testing.checks import isolated_plugins

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TEMPLATE = ROOT / "fbt_plugins" / "commands" / "templates" / "my-parts"
PAGE = (DOCS / "guides" / "plugins.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(?:python|toml)\n# (.*?)\n(.*?)```", PAGE, re.DOTALL)
FILES = {name: text for name, text in BLOCKS if "/" in name or name == "pyproject.toml"}
MOST_LINES = {"src/my_parts/backbone.py": 40, "src/my_parts/fusion.py": 40, "src/my_parts/loss.py": 25}


def python_of(page: str) -> list[str]:
    """The page's blocks of Python code."""
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


def test_the_speed_page_measures_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    (measure,) = python_of("results/speed.md")
    assert '"train"' in measure
    exec(measure.replace('"train"', '"val"'), {})  # a sixth of the images
    assert len(re.findall(r"^[\d,]+ images/s$", capsys.readouterr().out, re.MULTILINE)) == 3


def test_the_data_set_of_the_data_page_has_what_a_run_asks_for() -> None:
    (code,) = python_of("guides/data.md")
    try:
        exec(code, {"__name__": "my_data"})
        loaders = {
            sampler: build_loader(
                dict(dataset=dict(type="Stripes", split="train"), sampler=dict(type=sampler), batch_size=8), 1, "cpu"
            )
            for sampler in ("SeededSampler", "DefaultSampler")
        }
        for loader in loaders.values():
            assert loader_problems(loader, "train_dataloader") == []
            batch = next(iter(loader))
            across = (batch["inputs"][:, 0, 0] != batch["inputs"][:, 0, 0, :1]).any(1)
            assert torch.equal(across, batch["labels"] == 0)
    finally:
        DATASETS.module_dict.pop("Stripes", None)


def test_both_ways_of_the_quickstart_load_the_same_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """load_student, and timm by itself with the mean and std of the file."""
    ours, timms = [code for code in python_of("quickstart.md") if "fbt_convnext_resmlp/student.safetensors" in code]
    student = dict(type="timm", name="resmlp_s4_patch4_32", num_classes=10)
    config = builder(tmp_path / "work_dirs")(
        "fbt_convnext_resmlp", **{"model.student": student, "train_cfg.max_epochs": 1}
    )
    config.train_dataloader.num_batch_per_epoch = 1
    run(config)
    monkeypatch.chdir(tmp_path)
    image = FashionMNISTMini("test").image(0)
    loaded: dict[str, Any] = {"image": image}
    exec(ours, loaded)
    alone: dict[str, Any] = {"image": image}
    exec(timms, alone)
    assert loaded["logits"].shape == (1, 10)
    torch.testing.assert_close(loaded["logits"], alone["logits"])


OWN_LOOP = python_of("guides/own-loop.md")


@pytest.mark.parametrize("library", ["torch", "accelerate", "lightning"])
def test_the_loops_of_the_own_loop_page_run_in_an_empty_file(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(library)
    loops = [code for code in OWN_LOOP if "create_model" in code and "student.pt" in code]
    (code,) = [c for c in loops if library == next((n for n in ("accelerate", "lightning") if n in c), "torch")]
    assert len(code.splitlines()) <= (20 if library == "torch" else 36)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "own_loop"}
    exec(code.replace("FakeData(64, ", "FakeData(32, "), names)  # two steps show what four do
    trained = torch.load(tmp_path / "student.pt", weights_only=True)
    assert all(torch.equal(value, trained[key]) for key, value in names["student"].state_dict().items())
    fresh = timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=32)
    fresh.load_state_dict(trained)
    if library == "torch":
        (steps,) = [c for c in OWN_LOOP if "distiller.plan(" in c]
        exec(steps, names)
    if library == "accelerate":
        names["accelerator"].load_state(str(tmp_path / "checkpoint"))


def test_the_other_code_of_the_own_loop_page_runs() -> None:
    try:
        for code in OWN_LOOP:
            if "DataLoader" not in code and "distiller.plan(" not in code:
                exec(code, {"__name__": "own_loop"})
        loss = LOSSES.build(dict(type="CosineLoss"))
        known = Knowledge(torch.eye(2), torch.eye(2))
        assert loss(known, known, Batch(None)) == 0
    finally:
        LOSSES.module_dict.pop("CosineLoss", None)


# ---- guides/plugins.md -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_the_page_shows_the_files_that_the_tool_writes(name: str) -> None:
    assert FILES[name] == (TEMPLATE / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "most"), MOST_LINES.items())
def test_a_part_is_a_short_file_that_imports_what_is_public(name: str, most: int) -> None:
    assert len(FILES[name].splitlines()) <= most
    for module, names in re.findall(r"from (fbt_\S*) import (.*)", FILES[name]):
        assert module == "fbt_plugins" and set(names.split(", ")) <= set(fbt_plugins.__all__)


def test_the_page_names_all_that_is_public() -> None:
    assert not [name for name in fbt_plugins.__all__ if f"`{name}`" not in PAGE]


def test_the_pages_transform_metric_and_hook_work() -> None:
    try:
        exec(dict(BLOCKS)["extras.py"], {"__name__": "extras"})
        image = torch.full((3, 2, 2), 55, dtype=torch.uint8)
        assert torch.equal(build_transforms([dict(type="MyPartsInvert", p=1.0)], "x")(image), 255 - image)
        metric = METRICS.build(dict(type="MyPartsAgreement"))
        logits = torch.eye(4)
        metric.process(None, [dict(labels=torch.arange(4), student=logits, teacher=logits[[0, 1, 2, 0]])])
        assert metric.evaluate(4) == {"my_parts/agreement": 75.0}
        HOOKS.build(dict(type="MyPartsHook"))
    finally:
        for registry, name in ((TRANSFORMS, "Invert"), (METRICS, "Agreement"), (HOOKS, "Hook")):
            registry.module_dict.pop(f"MyParts{name}", None)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the page's files, which nothing has imported yet."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_parts"]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


@pytest.fixture
def written(files: Path, monkeypatch: pytest.MonkeyPatch) -> Plugins:
    """The page's files as a module, loaded by a manager of its own."""
    monkeypatch.syspath_prepend(str(files / "src"))
    plugins = isolated_plugins()
    plugins.load_module("my_parts")
    return plugins


def test_the_parts_do_what_they_must(
    written: Plugins, check_architecture: Callable, check_fusion: Callable, check_loss: Callable
) -> None:
    architectures, fusions, losses = written.registries
    check_architecture(architectures.build(dict(type="my_parts_net", num_classes=5)))
    check_fusion(fusions.build(dict(type="MyPartsFusion")))
    check_loss(losses.build(dict(type="MyPartsLoss")))
    check_loss(losses.build(dict(type="MyPartsLoss")), task=True)


def test_the_config_of_a_clone_fits(files: Path) -> None:
    """Run where the module lies, which no distribution has installed."""
    (text,) = re.findall(r"```python\n(_base_ = .*?)```", PAGE, re.DOTALL)
    config = files / "acme.py"
    config.write_text(text.replace("fbt_convnext", str(ROOT / "configs" / "fbt_convnext")))
    done = typed(ROOT / "tools" / "train.py", config, "--check", cwd=files / "src")
    assert done.code == 0 and "my_parts_net" in done.out, done.err


def test_the_parts_train_together(written: Plugins, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps of a distiller that has nothing else: the student learns the labels of one batch."""
    for registry, own in zip(load_plugins().registries, written.registries, strict=True):
        for name, part in own.module_dict.items():
            monkeypatch.setitem(registry.module_dict, name, part)
    torch.manual_seed(0)
    net = dict(type="my_parts_net", num_classes=10)
    model = Distiller(
        student=net,
        teacher=dict(net, width=16),
        fusion=dict(type="MyPartsFusion", splice="S1-2+T3-4"),
        edges=["teacher_to_student", "teacher_to_fusion", "fusion_to_student"],
        logit_loss=dict(type="MyPartsLoss", weight=0.1),
        task_loss=dict(type="MyPartsLoss"),
    ).train()
    images, batch = torch.rand(16, 3, 32, 32), Batch(torch.arange(16) % 10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    task = []
    for _ in range(10):
        total, losses = model.parse_losses(model.losses(images, batch))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        task.append(float(losses["task"]))
    assert task[-1] < task[0] / 2


class ScaledNet(nn.Module):
    """What the page's network that is no plain row may look like."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.scales = (1.0, 0.5)

        class Block(nn.Conv2d):
            def forward(self, x: torch.Tensor, scale: float) -> torch.Tensor:  # type: ignore[override]
                return scale * super().forward(x)

        self.blocks = nn.ModuleList([Block(3, 4, 2, 2), Block(4, 8, 2, 2)])
        self.norm, self.fc = nn.BatchNorm2d(8), nn.Linear(8, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block, scale in zip(self.blocks, self.scales, strict=True):
            x = block(x, scale)
        return self.fc(self.norm(x).mean((2, 3)))


def test_a_network_cut_by_hand_is_exact(check_architecture: Callable) -> None:
    (block,) = (text for name, text in BLOCKS if name.startswith("a network"))
    namespace: dict = {"ScaledNet": ScaledNet}
    exec(block, namespace)
    check_architecture(namespace["build_scaled_net"](5))


def test_the_pictures_are_what_their_script_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["draw.py", "--check"])
    assert runpy.run_path(str(DOCS / "pictures" / "draw.py"))["main"]() == 0
