"""Every shipped config is right, and those of the paper build and run a step on synthetic images."""

from pathlib import Path

import pytest
import torch

from fbt_plugins.distiller import Distiller
from fbt_plugins.engine.check import check_config
from fbt_plugins.engine.config import load_config
from fbt_plugins.knowledge import Batch

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(p for p in CONFIGS.rglob("*.py") if "_base_" not in p.parts)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_nothing_is_wrong(path: Path) -> None:
    config = load_config(path)
    config.work_dir = "unused"
    distiller = check_config(config)
    assert distiller is not None and distiller.image_size is not None


def test_the_papers_pair_runs_a_step() -> None:
    config = load_config(CONFIGS / "cifar100" / "fbt_convnext-t_resmlp-s12.py")
    assert config.optim_wrapper.optimizer == dict(type="AdamW", lr=5e-4, weight_decay=0.05)
    assert config.train_cfg.max_epochs == 300 and config.train_dataloader.batch_size == 128
    options = {k: v for k, v in config.model.to_dict().items() if k != "type"}
    model = Distiller(**options, image_size=(224, 224), data_info=dict(num_classes=100)).train()
    assert str(model.fusions["fusion"].splice) == "S1-3+T4"
    losses = model.losses(torch.rand(2, 3, 224, 224), Batch(torch.tensor([3, 99])))
    sum(losses.values()).backward()
    assert all(torch.isfinite(v) for v in losses.values())
    assert all(p.grad is not None for p in model.parameters())


def test_the_shipped_teacher_is_the_flagships_and_its_configs_student() -> None:
    flagship = load_config(CONFIGS / "fbt_convnext_resmlp.py").model.teacher.to_dict()
    made = load_config(CONFIGS / "teachers" / "convnext_fashion_mnist.py").model.student.to_dict()
    for own in ("checkpoint", "mean", "std"):
        flagship.pop(own, None), made.pop(own, None)
    assert flagship == made
