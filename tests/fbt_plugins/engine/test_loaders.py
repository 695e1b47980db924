"""Data are looked at before anything is trained, and a training is never lost to what comes after it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from runs import builder, run
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler

from fbt_plugins.data import InMemoryDataset, SeededSampler
from fbt_plugins.engine.check import check_config
from fbt_plugins.engine.data_workers import worker_count
from fbt_plugins.engine.hooks import summary
from fbt_plugins.engine.loaders import (
    SPLITS,
    build_loader,
    loader_problems,
    missing_data,
    open_all,
    open_splits,
    sampler_of,
)
from fbt_plugins.engine.runner import DistillRunner
from fbt_plugins.errors import ConfigError, FBTError
from fbt_plugins.files import is_finished

NOWHERE = dict(type="ImageFolder", split="test", root="/nowhere")


def test_a_missing_split_stops_a_run_before_its_model_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = builder(tmp_path)("run", **{"test_dataloader.dataset": NOWHERE})
    monkeypatch.setattr(DistillRunner, "wrap_model", lambda *_: pytest.fail("a model was built"))
    with pytest.raises(FBTError, match="no folder /nowhere/test"):
        DistillRunner.from_cfg(config)
    with pytest.raises(ConfigError, match=r"tiny.py: test_dataloader: ImageFolder: no folder /nowhere/test"):
        open_all({"": builder(tmp_path)(), "one": config})
    with pytest.raises(ConfigError, match=r"^a/fbt and 1 more: test_dataloader: ImageFolder: no folder /nowhere/test"):
        open_all({"a/fbt": config.to_dict(), "a/kd": config.to_dict()})  # as a matrix's cells are


def test_what_is_opened_is_said_and_everything_wrong_at_once(tmp_path: Path) -> None:
    config = builder(tmp_path)
    assert open_splits(config()) == [
        "train    32 images of 32x32, 10 classes, 4 batches",
        "val      20 images of 32x32, 10 classes, 1 batches",
        "test     20 images of 32x32, 10 classes, 1 batches",
    ]
    broken = config(**{"test_dataloader.dataset": NOWHERE, "val_dataloader.num_batch_per_epoch": 0})
    with pytest.raises(ConfigError) as error:
        open_splits(broken)
    assert ["no batch at all" in line for line in error.value.problems] == [True, False]


def test_what_fails_after_training_leaves_the_student_and_what_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise FBTError("a test image is gone")

    monkeypatch.setattr(summary, "evaluate", fails)
    with pytest.raises(FBTError, match="a test image is gone"):
        run(builder(tmp_path)("run", **{"train_cfg.max_epochs": 1}))
    folder = tmp_path / "run"
    assert (folder / "student.safetensors").is_file() and not is_finished(folder)
    known = json.loads((folder / "summary.json").read_text())
    assert known["unfinished"] == "testing failed: a test image is gone"
    assert known["best_epoch"] == 1 and known["seed"] == 3 and "student_top1" not in known
    monkeypatch.undo()
    run(builder(tmp_path)("run", **{"train_cfg.max_epochs": 1, "resume": True}))  # only tests
    assert is_finished(folder) and "student_top1" in json.loads((folder / "summary.json").read_text())


class Pictures(InMemoryDataset):
    """Black images with the labels that it is given."""

    def __init__(self, labels: Any = 0, count: int = 12, seed: int = 0) -> None:
        labels = torch.as_tensor(labels).expand(count, *torch.as_tensor(labels).shape)
        super().__init__(list("0123456789"), torch.zeros(count, 8, 8, dtype=torch.uint8), labels, (), seed)


class Changed(Pictures):
    """Samples that are made from ours."""

    def __init__(self, change: Callable[[dict[str, Any]], Any]) -> None:
        super().__init__()
        self.change = change

    def __getitem__(self, key: Any) -> Any:
        sample = super().__getitem__(key)
        return self.change(sample) if hasattr(self, "change") else sample


class Own(Dataset[int]):
    """Knows nothing of us."""

    def __len__(self) -> int:
        return 5


def wider(sample: dict[str, Any]) -> dict[str, Any]:
    return {**sample, "inputs": torch.zeros(3, 8, 8 + sample["index"] % 2)}


@pytest.mark.parametrize(
    ("dataset", "says"),
    [
        (Own(), "x_dataloader.dataset: Own has no classes and no image_size: subclass ImageDataset, or see docs"),
        (Pictures(10), "image 0: its label is 10, expected 0 to 9"),
        (
            Pictures([1, 0] * 5),
            "image 0: its label is list [1, 0, 1, 0, 1, 0, 1, 0, 1, 0], expected one class number; ",
        ),
        (Changed(wider), "images of 8x8 and 8x9 pixels fit no batch: add dict(type='Resize'"),
        (Changed(lambda s: {**s, "inputs": s["inputs"] + 7.0}), "pixels from 7 to 7, expected 0 to 1: ToDtype needs"),
        (Changed(lambda s: {**s, "inputs": s["inputs"][:1]}), "expected inputs (3, height, width), got (1, 8, 8)"),
        (Changed(lambda s: (s["inputs"], 0)), "expected a dict of inputs, labels and index, got tuple"),
        (Changed(lambda s: s["nothing"]), "Changed fails on image 0: KeyError: 'nothing'"),
        (Pictures(count=3), "x_dataloader: no batch at all: 3 images, batch_size=4; lower it, or drop_last=False"),
    ],
)
def test_data_that_no_run_can_use_are_one_line(dataset: Any, says: str) -> None:
    loader = DataLoader(dataset, 4, sampler=SeededSampler(dataset), drop_last=True)
    (problem,) = loader_problems(loader, "x_dataloader")
    assert says in problem


def failing(samples: list[Any]) -> Any:
    raise ValueError("no batch today")


@pytest.mark.parametrize(
    ("collate", "says"),
    [
        (
            pseudo_collate,
            "pseudo_collate gives inputs as list, expected a dict of tensors: inputs (N, 3, height, width)",
        ),
        (list, "list gives inputs as list, expected a dict"),
        (failing, "failing fails on 2 images: no batch today; drop it, and samples are stacked"),
    ],
)
def test_a_batch_that_is_none_is_one_line(collate: Any, says: str) -> None:
    loader = DataLoader(Pictures(), 4, sampler=SeededSampler(Pictures()), collate_fn=collate)
    (problem,) = loader_problems(loader, "x_dataloader")
    assert problem.startswith(f"x_dataloader.collate_fn: {says}")


def test_data_that_a_run_can_use_are_not_complained_about() -> None:
    soft = Changed(lambda s: {**s, "labels": torch.full((10,), 0.1)})
    for dataset, where in ((Pictures(), "val_dataloader"), (soft, "train_dataloader")):
        state = torch.get_rng_state()
        assert loader_problems(DataLoader(dataset, 4, sampler=SeededSampler(dataset)), where) == []
        assert torch.equal(torch.get_rng_state(), state)
    assert loader_problems(DataLoader(Changed(wider), 1), "train_dataloader") == []


def test_workers_may_be_as_many_as_there_are_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of the machine, but of those that this process may use; what a user says is taken as it is."""
    assert (worker_count(None), worker_count(5), worker_count("auto")) == (0, 5, min(8, len(os.sched_getaffinity(0))))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(3)))
    config = builder(tmp_path)(**{"train_dataloader.num_workers": "auto"})
    check_config(config)
    assert build_loader(config.train_dataloader, 1, "cpu").num_workers == 3
    config.train_dataloader.num_workers = "all"
    with pytest.raises(ConfigError, match="train_dataloader: num_workers must be a whole number, not 'all'"):
        check_config(config)


def test_a_sampler_is_found_behind_one_of_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS.module_dict, "Pictures", Pictures)
    options = dict(dataset=dict(type="Pictures"), sampler=dict(type="DefaultSampler"), batch_size=4)
    assert sampler_of(build_loader(options, 1, "cpu")).name == "DefaultSampler"
    inner = SequentialSampler(range(9))
    assert sampler_of(SimpleNamespace(batch_sampler=BatchSampler(inner, 2, True), sampler=None)) is inner


def test_more_batches_than_there_are_images_are_refused_by_counting(tmp_path: Path) -> None:
    """mmengine's slice of a data set counts images that are not there."""
    few = {"train_dataloader.dataset": dict(type="FashionMNISTMini", split="val"), "train_dataloader.batch_size": 500}
    config = builder(tmp_path)(**few, **{"train_dataloader.num_batch_per_epoch": 3})
    line = "train_dataloader: num_batch_per_epoch asks for 1,500 images, and the data have 1,000: lower it, or drop it"
    for look in (open_splits, DistillRunner.from_cfg):
        with pytest.raises(ConfigError, match=line):
            look(config)
    config.train_dataloader.num_batch_per_epoch = 2
    assert open_splits(config)[0].startswith("train    1,000 images")


def test_missing_data_are_known_without_opening_them(tmp_path: Path) -> None:
    def missing(**dataset: object) -> list[str]:
        return missing_data({f"{split}_dataloader": dict(dataset=dict(dataset, split=split)) for split in SPLITS})

    for folder in ("train/cat", "val"):
        (tmp_path / folder).mkdir(parents=True)
    val, test = missing(type="ImageFolder", root=str(tmp_path), transforms=[])
    assert val.startswith(f"val_dataloader: ImageFolder: {tmp_path}/val has no class folder")
    assert test.startswith(f"test_dataloader: ImageFolder: no folder {tmp_path}/test")
    for name, file in (("FashionMNIST", "t10k-images-idx3-ubyte.gz"), ("CIFAR10", "data_batch_1")):
        lines = missing(type=name, root=str(tmp_path))
        assert len(lines) == 3 and file in lines[2] and "test_dataloader.dataset.download=True" in lines[2]
        assert missing(type=name, root=str(tmp_path), download=True) == []
    assert missing(type="FashionMNISTMini") == missing(type="NoSuch") == missing_data({}) == []
