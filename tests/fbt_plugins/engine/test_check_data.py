"""What ``check_config`` and opening its loaders find in data, and in what images a model and a loss are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.registry import DATASETS
from runs import builder
from torch.utils.data import Dataset

from fbt_plugins import LOSSES
from fbt_plugins.data import InMemoryDataset
from fbt_plugins.engine.check import check_config
from fbt_plugins.engine.loaders import open_splits
from fbt_plugins.engine.runner import DistillRunner
from fbt_plugins.errors import ConfigError

VIT = dict(type="timm", name="vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=10, embed_dim=24, depth=4)
RESNET = dict(type="timm", name="resnet18", num_classes=10, channels=(8, 8, 8, 8))
SCRATCH = {"model.teacher": None, "model.fusion": None, "model.edges": (), "model.feature_loss": None}
TRANSFORMS = "train_dataloader.dataset.transforms"


class Seedless(Dataset[int]):
    def __init__(self, count: int = 3) -> None:
        pass


class Few(InMemoryDataset):
    def __init__(self, count: int, seed: int = 0) -> None:
        images, labels = torch.zeros(count, 32, 32, dtype=torch.uint8), torch.zeros(count, dtype=torch.long)
        super().__init__(list("0123456789"), images, labels, (), seed)


@pytest.fixture(autouse=True)
def data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Seedless, Few):
        monkeypatch.setitem(DATASETS.module_dict, kind.__name__, kind)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"randomness.seed": -1}, "randomness.seed: from 0 to 2**32 - 1, not -1"),
        ({"randomness.seed": 2**32}, "randomness.seed: from 0 to 2**32 - 1, not 4294967296"),
        ({"randomness.seed": True}, "randomness.seed: a whole number, not True"),
        (
            {"model.student": {**VIT, "in_chans": 1, "mean": 0.5, "std": 0.5}},
            "model.student: in_chans=1, but images have 3 channels",
        ),
        (
            {"model.student": {**VIT, "patch_drop_rate": 0.5}},
            "vit_tiny_patch16_224: stage 1 gives 9 x 24 per image in training, but 17 x 24 in evaluation",
        ),
        ({"ema": {}, "optim_wrapper.type": "OptimWrapper"}, "ema: OptimWrapper does not say which updates were made"),
        ({"train_dataloader.dataset": dict(type="Seedless")}, "dataset: Seedless takes no seed, which a run gives"),
        ({TRANSFORMS: [dict(type="Normalize", mean=[0.5], std=[0.5])]}, "transforms[0] Normalize: drop it: each"),
        (
            {TRANSFORMS: [dict(type="RandomCrop", size=64)]},
            "FashionMNISTMini.transforms fail on images of 28x28 pixels",
        ),
        ({"val_dataloader.sampler.type": "InfiniteSampler"}, "val_dataloader.sampler: InfiniteSampler never ends"),
    ],
)
def test_what_would_stop_a_run_is_found_by_the_check(options: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        check_config(builder(tmp_path)(**options))
    assert says in str(error.value)


def test_patches_may_be_dropped_where_nothing_takes_stages(tmp_path: Path) -> None:
    check_config(
        builder(tmp_path)(**SCRATCH, **{"model.logit_loss": None, "model.student": {**VIT, "patch_drop_rate": 0.5}})
    )


@DATASETS.register_module()
class Sizeless(Dataset):
    """Says its classes, and not how large its images are."""

    def __init__(self, seed: int) -> None:
        self.classes = ("a", "b")

    def __len__(self) -> int:
        return 8

    def __getitem__(self, position: int) -> dict[str, Any]:
        return dict(inputs=torch.zeros(3, 8, 8), labels=0, index=position)


@DATASETS.register_module()
class Sized(Sizeless):
    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.__dict__.update(image_size=(8, 8))


def test_a_data_set_without_an_image_size_is_found_by_the_check(tmp_path: Path) -> None:
    config = builder(tmp_path)(**SCRATCH, **{"model.logit_loss": None, "val_dataloader.dataset": dict(type="Sized")})
    check_config(config)
    config.val_dataloader.dataset = dict(type="Sizeless")
    with pytest.raises(ConfigError, match=r"val_dataloader\.dataset: Sizeless has no image_size: subclass"):
        check_config(config)


def test_a_last_batch_of_one_image_is_counted_where_batchnorm_cannot_train_on_it(tmp_path: Path) -> None:
    few = {"train_dataloader.dataset": dict(type="Few", count=17), "train_dataloader.num_batch_per_epoch": None}
    config = builder(tmp_path)(**few, **{"model.student": RESNET, "train_dataloader.drop_last": False})
    distiller = check_config(config)
    says = r"17 images in batches of 8, the last of 3 batches with one image: .* set train_dataloader.drop_last=True"
    with pytest.raises(ConfigError, match=says):
        open_splits(config, distiller)
    with pytest.raises(ConfigError, match=says):
        DistillRunner.from_cfg(config)
    config.train_dataloader.drop_last = True
    open_splits(config, distiller)
    config.train_dataloader.update(drop_last=False, dataset=dict(type="Few", count=18))
    open_splits(config, distiller)


def test_a_loss_says_how_many_images_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LOSSES.get("KDLoss"), "needs", {"min_batch": 2}, raising=False)
    few = {"train_dataloader.dataset": dict(type="Few", count=17), "train_dataloader.num_batch_per_epoch": None}
    kd = {"model.fusion": None, "model.edges": ["teacher_to_student"], "model.logit_loss": dict(type="KDLoss")}
    config = builder(tmp_path)(**few, **kd, **{"train_dataloader.drop_last": False})
    distiller = check_config(config)
    needs = r"with one image: KDLoss \(teacher_to_student/logit\) needs 2 or more: set train_dataloader.drop_last=True"
    with pytest.raises(ConfigError, match=f"17 images in batches of 8, the last of 3 batches {needs}"):
        open_splits(config, distiller)
    config.train_dataloader.drop_last = True
    open_splits(config, distiller)
    config.train_dataloader.batch_size = 1
    with pytest.raises(ConfigError, match=f"17 images in batches of 1, each {needs}"):
        open_splits(config, distiller)
    monkeypatch.setattr(LOSSES.get("KDLoss"), "needs", {"min_batch": 0})
    with pytest.raises(ConfigError, match="needs min_batch=int 0, not a number of images from 1"):
        check_config(config)
