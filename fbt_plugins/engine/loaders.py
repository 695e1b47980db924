"""Data loaders from configs, and a look at what they give before anything is trained on it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS
from mmengine.runner import Runner
from torch import Tensor
from torch.utils.data import DataLoader

from ..data import NO_LABEL, EpochSampler, ImageDataset, InMemoryLoader, Mixing, SeededSampler
from ..distill.distiller import Distiller
from ..errors import ConfigError, FBTError, by_name, one_line, short
from ..randomness import seeded
from .data_workers import worker_context, worker_count
from .processes import allow_open_files
from .training_mode import last_batch_problems

SPLITS = ("train", "val", "test")
_LOOKED_AT = 8
"""Images of a data set that are read in advance: enough to see that they are alike, too few to take time."""
ATTRIBUTES = ("classes", "image_size")
CONTRACT = "subclass ImageDataset, or see docs/guides/data.md for what a data set has"


def build_loader(dataloader: Mapping[str, Any], seed: int | None, device: Any) -> DataLoader[Any] | InMemoryLoader:
    """mmengine's DataLoader: samples are stacked to tensors, data set and sampler draw from the run's seed.

    Args:
        dataloader: its config; with ``in_memory=True`` an :class:`InMemoryLoader` of the same data set, sampler and
            batch size is made of it.
        seed: of the run, the same in all processes.
        device: where images that are held in memory are.

    Raises:
        FBTError: for what is wrong with the data.
    """
    config = {key: value for key, value in dataloader.items() if value is not None}
    in_memory = config.pop("in_memory", False)
    config.setdefault("collate_fn", {"type": "default_collate"})
    config["num_workers"] = worker_count(config.get("num_workers"))
    config["dataset"] = {"seed": seed or 0, **config["dataset"]}
    sampler = config["sampler"]
    if isinstance(sampler, Mapping) and sampler["type"] != SeededSampler.__name__:
        config["sampler"] = {"type": EpochSampler, "sampler": sampler}
    if config["num_workers"] and not in_memory:
        allow_open_files(config["num_workers"])
    built = Runner.build_dataloader(config, seed)
    if built.num_workers:
        built.multiprocessing_context = worker_context(built.multiprocessing_context)
    if in_memory:
        return InMemoryLoader(built.dataset, built.sampler, built.batch_size, built.drop_last, device)
    return built


def labelled(dataset: Any) -> int | None:
    """How many images of a data set have a label; None where it does not tell."""
    whole = getattr(dataset, "_dataset", dataset)  # mmengine's slice of a data set wraps it
    number = getattr(whole, "num_labelled", None)
    if whole is dataset or not number:
        return number
    return len(dataset) if number == len(whole) else None


def data_info(dataset: Any) -> dict[str, int]:
    """What losses are told about the training data: images, classes, and how many images have a label, where known."""
    about = {"num_samples": len(dataset)} | ({"num_classes": len(dataset.classes)} if dataset.classes else {})
    number = labelled(dataset)
    return about | ({} if number is None else {"num_labelled": number})


def mixing_for(dataset: Any, options: Mapping[str, Any]) -> Mixing:
    """Mixup and CutMix of a data set's images."""
    all_labelled = not hasattr(dataset, "num_labelled") or labelled(dataset) == len(dataset)
    return Mixing(num_classes=len(dataset.classes), all_labelled=all_labelled, **options)


def without_labels(what: str, split: str) -> str:
    """Why something cannot be had of images without labels."""
    off = f"set {split}_dataloader, {split}_evaluator and {split}_cfg to None, or give images with labels"
    return f"{what} needs labels, and the images of this split have none: {off} (docs/guides/data.md)"


def label_problems(datasets: Mapping[str, Any], metrics: Mapping[str, Iterable[Any]]) -> list[str]:
    """Splits in which a class has another number than in training, and metrics of labels that are not there.

    Args:
        datasets: by split.
        metrics: the same splits' metrics, or their classes.

    Returns:
        One line each.
    """
    problems = []
    numbers = {split: {str(c): n for n, c in enumerate(dataset.classes)} for split, dataset in datasets.items()}
    known = numbers.get("train", {})
    for split, dataset in datasets.items():
        moved = next((name for name, n in numbers[split].items() if known.get(name, n) != n), None)
        if moved is not None:
            what = f"class {moved!r} is number {numbers[split][moved]}, and in train {known[moved]}"
            problems.append(f"{split}_dataloader.dataset: {what}; give both the same classes=[...]")
        if labelled(dataset) == 0:
            for metric in metrics.get(split, ()):
                if getattr(metric, "needs_labels", False):
                    name = metric.__name__ if isinstance(metric, type) else type(metric).__name__
                    problems.append(f"{split}_evaluator: {without_labels(name, split)}")
    return problems


NO_LABELS = "no labels"


def describe_labels(dataset: Any) -> str:
    """ "10 classes", and how many images have a label, where that is not all."""
    classes, number = f"{len(dataset.classes)} classes", labelled(dataset)
    if number in (None, len(dataset)):
        return classes
    return f"{classes}, {number:,} with a label" if number else NO_LABELS


BANK = "bank"
IN_ORDER = {"type": "SeededSampler", "shuffle": False}


def open_banks(metrics: Iterable[Any], dataset: Any, split: str, seed: int | None, device: Any) -> list[str]:
    """Opens the banks of labelled images that metrics compare with.

    Args:
        metrics: of an evaluator.
        dataset: what it is of; the classes of both must have the same numbers.
        split: its name.
        seed, device: see :func:`build_loader`.

    Returns:
        What is wrong with them, one line each.
    """
    problems = []
    for metric in metrics:
        if (options := getattr(metric, BANK, None)) is None:
            continue
        where = f"{split}_evaluator.{BANK}"
        try:
            loader = build_loader({"sampler": IN_ORDER, **options}, seed, device)
        except FBTError as error:
            problems += [f"{where}: {line}" for line in error.lines()]
            continue
        found = loader_problems(loader, where)
        if not found and labelled(loader.dataset) == 0:
            found = [f"{where}: {type(metric).__name__} needs labels, and its images have none"]
        if not found and _names(loader.dataset) != _names(dataset):
            found = [f"{where}: its classes are not those of {split}_dataloader; give both the same classes=[...]"]
        images: Any = loader.dataset
        problems += found or size_problems(options, images.image_size, dataset.image_size, split)
        metric.bank_loader = loader
    return problems


def size_problems(bank: Mapping[str, Any], banked: Any, asked: Any, split: str) -> list[str]:
    """Why a bank's images cannot be compared with a split's: features of another size are other features.

    Args:
        bank: its loader's config; batches of one image may have any size.
        banked, asked: (height, width) of the bank's images and of the split's; None where that is not known.
        split: whose bank it is.

    Returns:
        One line at most.
    """
    if None in (banked, asked) or tuple(banked) == tuple(asked) or bank.get("batch_size") == 1:
        return []
    here, there = ("x".join(map(str, size)) for size in (banked, asked))
    what = f"its images are {here} pixels, and those of {split}_dataloader {there}"
    return [f"{split}_evaluator.{BANK}: {what}: give both the same transforms, with one Resize"]


def _names(dataset: Any) -> list[str]:
    return [str(name) for name in dataset.classes]


def sampler_of(loader: Any) -> Any:
    """Who decides on the order of a loader's images, whether or not another one makes batches of them."""
    return getattr(getattr(loader, "batch_sampler", None), "sampler", loader.sampler)


def loader_problems(loader: Any, where: str) -> list[str]:
    """What a run would trip over: batches that are none, and samples that cannot be trained on.

    Args:
        loader: with its data set; a few of its images are read.
        where: its key in the config.

    Returns:
        One line each.
    """
    dataset = loader.dataset
    stored = getattr(dataset, "_dataset", dataset)  # mmengine's slice of a data set wraps it, and counts nothing
    if len(dataset) > len(stored):
        return [too_many_batches(where, len(dataset), len(stored))]
    missing = [name for name in ATTRIBUTES if not hasattr(dataset, name)]
    if missing:
        return [f"{where}.dataset: {_name(dataset)} has no {' and no '.join(missing)}: {CONTRACT}"]
    if len(loader) == 0:
        size = getattr(loader, "batch_size", None)
        return [f"{where}: no batch at all: {len(dataset):,} images, batch_size={size}; lower it, or drop_last=False"]
    shapes, samples, sampler = set(), [], sampler_of(loader)
    paired = isinstance(sampler, SeededSampler) or getattr(sampler, "takes_epochs", False)
    positions = sorted({len(dataset) * number // _LOOKED_AT for number in range(_LOOKED_AT)})
    for position in positions:
        try:
            with seeded(0):
                sample = dataset[(0, position) if paired else position]
        except FBTError as error:
            return [f"{where}: {line}" for line in error.lines()]
        except Exception as error:  # a data set of the user's own, or one of its transforms
            return [f"{where}.dataset: {_name(dataset)} fails on image {position}: {one_line(error)}; {CONTRACT}"]
        if problem := _sample_problem(sample, len(dataset.classes), soft=where.startswith("train")):
            return [f"{where}.dataset: {_name(dataset)}: image {position}: {problem}"]
        shapes.add(tuple(sample["inputs"].shape[1:]))
        samples.append(sample)
    if len(shapes) > 1 and loader.batch_size != 1:
        found = " and ".join(f"{height}x{width}" for height, width in sorted(shapes)[:2])
        return [f"{where}.dataset: images of {found} pixels fit no batch: {ADD_RESIZE}"]
    collate = getattr(loader, "collate_fn", None)  # a loader of a data set in memory has none
    problem = "" if collate is None else _batch_problem(collate, samples[: 1 if loader.batch_size == 1 else 2])
    return [f"{where}.collate_fn: {problem}; drop it, and samples are stacked"] if problem else []


def too_many_batches(where: str, asked: int, images: int) -> str:
    """Says that ``num_batch_per_epoch`` asks for more than there is.

    Args:
        where: the loader's key in the config.
        asked: images of so many batches, of all processes.
        images: that there are.
    """
    return (
        f"{where}: num_batch_per_epoch asks for {asked:,} images, and the data have {images:,}: lower it, or drop it, "
        "which shows all of them"
    )


ADD_RESIZE = "add dict(type='Resize', size=(HEIGHT, WIDTH)) to the transforms"


def _name(dataset: Any) -> str:
    return type(getattr(dataset, "_dataset", dataset)).__name__  # mmengine's slice of a data set wraps it


def _batch_problem(collate: Callable[[list[Any]], Any], samples: list[Any]) -> str:
    """What is wrong with the batch that a function makes of samples; empty where nothing is."""
    name = getattr(getattr(collate, "func", collate), "__name__", short(collate))
    try:
        with seeded(0):
            batch = collate(samples)
    except Exception as error:  # a function of the user's own
        return f"{name} fails on {len(samples)} images: {one_line(error)}"
    for key, axes in (("inputs", 4), ("labels", 1), ("index", 1)):
        value = batch.get(key) if isinstance(batch, Mapping) else batch
        if not isinstance(value, Tensor) or value.ndim < axes:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            return (
                f"{name} gives {key} as {got}, expected a dict of tensors: inputs (N, 3, height, width), labels, index"
            )
    return ""


def _sample_problem(sample: Any, classes: int, soft: bool) -> str:
    """What is wrong with one sample; empty where nothing is.

    Args:
        sample: what the data set gives.
        classes: C.
        soft: whether its label may also be C shares that sum to 1.
    """
    if not isinstance(sample, Mapping) or not {"inputs", "labels", "index"} <= sample.keys():
        return f"expected a dict of inputs, labels and index, got {short(sample)}; {CONTRACT}"
    image, label = sample["inputs"], sample["labels"]
    if not isinstance(image, Tensor) or image.ndim != 3 or len(image) != 3:
        got = tuple(image.shape) if isinstance(image, Tensor) else short(image)
        return f"expected inputs (3, height, width), got {got}"
    if image.is_floating_point() and not (image.min() >= -1 and image.max() <= 2):  # bicubic overshoots a little
        found = f"{image.min():.3g} to {image.max():.3g}"
        return f"floating-point pixels from {found}, expected 0 to 1: ToDtype needs scale=True"
    if soft and isinstance(label, Tensor) and label.is_floating_point() and label.shape == (classes,):
        return (
            ""
            if abs(float(label.sum()) - 1) < 1e-3 or not label.any()
            else f"its label's {classes} shares sum to {label.sum():.3g}, not 1"
        )
    number = label.item() if isinstance(label, Tensor) and label.numel() == 1 else label
    if isinstance(number, bool) or not hasattr(number, "__index__") or isinstance(number, Tensor):
        return f"its label is {short(label)}, expected one class number; several labels per image are not supported"
    if not NO_LABEL <= int(number) < classes:
        expected = f"0 to {classes - 1}, or -1 for none" if classes else "-1, for it has no classes"
        return f"its label is {number}, expected {expected}"
    return ""


def open_splits(config: Mapping[str, Any] | Config, distiller: Distiller | None = None) -> list[str]:
    """Opens the data of all splits of a run, and reads a few images of each.

    Args:
        config: of the run, checked, or its contents.
        distiller: that is to be trained, where the last batch shall suit it.

    Returns:
        A line for each split, of what it has.

    Raises:
        ConfigError: with everything that is wrong, one line each.
    """
    lines, problems, datasets = [], [], {}
    for split in SPLITS:
        if (options := config.get(f"{split}_dataloader")) is None:
            continue
        where = f"{split}_dataloader"
        try:
            loader = build_loader(options, (config.get("randomness") or {}).get("seed"), torch.device("cpu"))
        except FBTError as error:
            problems += [f"{where}: {line}" for line in error.lines()]
            continue
        except Exception as error:  # mmengine's registries wrap what a data set of the user's own raises
            problems.append(f"{where}: {one_line(error)}")
            continue
        found = loader_problems(loader, where)
        if not found and split == "train" and distiller is not None:
            found = last_batch_problems(distiller, loader)
        problems += found
        if not found:
            dataset: Any = loader.dataset
            datasets[split] = dataset
            size = "x".join(map(str, dataset.image_size))
            about = f"{len(dataset):,} images of {size}, {describe_labels(dataset)}"
            lines.append(f"{split:8} {about}, {len(loader):,} batches")
    if not problems:
        problems = label_problems(datasets, {split: _metrics(config.get(f"{split}_evaluator")) for split in datasets})
    if problems:
        file = getattr(config, "filename", None)
        source = f"{file}: " if file else ""
        raise ConfigError([f"{source}{line}" for line in problems])
    return lines


def _metrics(evaluator: Any) -> list[Any]:
    """Classes of a config's metrics."""
    configs = evaluator if isinstance(evaluator, list | tuple) else [evaluator]
    return [METRICS.module_dict.get(config["type"]) for config in configs if isinstance(config, Mapping)]


def missing_data(config: Mapping[str, Any] | Config) -> list[str]:
    """What of a run's data is not on this machine, a line for each split, as far as that can be told without them.

    Args:
        config: of the run, checked.
    """
    lines, fetched = [], set()
    for split in SPLITS:
        dataset = dict((config.get(f"{split}_dataloader") or {}).get("dataset") or {})
        kind = DATASETS.module_dict.get(str(dataset.pop("type", "")))
        if not (inspect.isclass(kind) and issubclass(kind, ImageDataset)):
            continue
        if dataset.get("download"):  # which gets what the other splits need as well
            fetched.add((kind, dataset.get("root")))
        dataset.pop("transforms", None)
        if (kind, dataset.get("root")) not in fetched and (problem := kind.missing(**dataset)):
            lines.append(f"{split}_dataloader: {problem}")
    return lines


def open_all(configs: Mapping[str, Mapping[str, Any] | Config]) -> None:
    """Opens the data of many runs, those that are the same once.

    Args:
        configs: by name, which is put before what is wrong with one's data; "" is a name that is not.

    Raises:
        ConfigError: with everything that is wrong, one line each.
    """
    opened: dict[str, list[str]] = {}
    problems = {}
    for name, config in configs.items():
        splits = {split: config.get(f"{split}_dataloader") for split in SPLITS}
        key = json.dumps(splits, sort_keys=True, default=repr)
        if key not in opened:
            try:
                open_splits(config)
                opened[key] = []
            except ConfigError as error:
                opened[key] = error.problems
        problems[name] = opened[key]
    if lines := by_name(problems):
        raise ConfigError(lines)
