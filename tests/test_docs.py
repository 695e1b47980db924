"""The pages' own code works as it stands."""

import re
import sys
from pathlib import Path

import pytest
import torch
from conftest import CONVNEXT, RESMLP
from torch import nn

from fbt_plugins.distiller import Distiller
from fbt_plugins.knowledge import Batch
from fbt_plugins.plugins import Plugins
from fbt_plugins.registry import LOSSES, PluginRegistry, Registries

PAGE = (Path(__file__).parents[1] / "docs" / "plugins.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


class MyNet(nn.Module):
    """What the page's architecture example takes for granted."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4)
        for i in range(1, 5):
            self.add_module(f"layer{i}", nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1), nn.ReLU()))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x))
        for i in range(1, 5):
            x = getattr(self, f"layer{i}")(x)
        return self.fc(self.pool(x))


def test_the_engine_page_measures_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[1] / "docs" / "engine.md").read_text(encoding="utf-8")
    measure, visualizers = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(measure, {})
    assert len(re.findall(r"^[\d,]+ images/s$", capsys.readouterr().out, re.MULTILINE)) == 3
    exec(visualizers, {})


def test_the_loss_example_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_plugin.py").write_text(BLOCKS[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    failures = LOSSES.failures
    plugins = Plugins(Registries(PluginRegistry("architecture"), PluginRegistry("fusion"), LOSSES))
    try:
        plugins.load_module("my_plugin")
        options = dict(edges=["teacher_to_student"], feature_loss=dict(type="CosineLoss"))
        model = Distiller(RESMLP, CONVNEXT, **options, image_size=(32, 32))
        model.losses(torch.rand(2, 3, 32, 32), Batch(torch.tensor([0, 1])))["teacher_to_student/feature"].backward()
    finally:
        LOSSES._module_dict.pop("CosineLoss", None)
        LOSSES.owners.pop("CosineLoss", None)
        LOSSES.failures = failures
        sys.modules.pop("my_plugin", None)


def test_the_architecture_example_is_exact() -> None:
    namespace: dict = {"MyNet": MyNet}
    exec("import fbt_plugins\n" + BLOCKS[1], namespace)
    proof = namespace["build_mynet"](5).verify(16)
    assert proof.parameters == len(list(MyNet(5).parameters()))
