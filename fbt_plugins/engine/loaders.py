"""Data loaders from configs, and a look at what they give before anything is trained on it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from multiprocessing.context import BaseContext, ForkContext, ForkProcess
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import Tensor
from torch.utils.data import DataLoader

from ..data import EpochSampler, InMemoryLoader, SeededSampler
from ..distill.distiller import Distiller
from ..errors import ConfigError, FBTError, one_line, short
from ..randomness import seeded
from .processes import allow_open_files
from .training_mode import last_batch_problems

SPLITS = ("train", "val", "test")
_LOOKED_AT = 8
"""Images of a data set that are read in advance: enough to see that they are alike, too few to take time."""
CONTRACT = "subclass ImageDataset, or see docs/data.md for what a data set has"


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
    config = dict(dataloader)
    in_memory = config.pop("in_memory", False)
    config.setdefault("collate_fn", {"type": "default_collate"})
    config.setdefault("num_workers", 0)
    config["dataset"] = {"seed": seed or 0, **config["dataset"]}
    sampler = config["sampler"]
    if isinstance(sampler, Mapping) and sampler["type"] != SeededSampler.__name__:
        config["sampler"] = {"type": EpochSampler, "sampler": sampler}
    if config["num_workers"] and not in_memory:
        allow_open_files(config["num_workers"])
    built = Runner.build_dataloader(config, seed)
    if built.num_workers and built.multiprocessing_context is None:
        built.multiprocessing_context = worker_context()
    if in_memory:
        return InMemoryLoader(built.dataset, built.sampler, built.batch_size, built.drop_last, device)
    return built


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
    missing = [name for name in ("classes", "image_size") if not hasattr(dataset, name)]
    if missing:
        return [f"{where}.dataset: {_name(dataset)} has no {' and no '.join(missing)}: {CONTRACT}"]
    if len(loader) == 0:
        size = getattr(loader, "batch_size", None)
        return [f"{where}: no batch at all: {len(dataset):,} images, batch_size={size}; lower it, or drop_last=False"]
    shapes, sampler = set(), sampler_of(loader)
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
    if len(shapes) > 1 and loader.batch_size != 1:
        found = " and ".join(f"{height}x{width}" for height, width in sorted(shapes)[:2])
        return [f"{where}.dataset: images of {found} pixels fit no batch: {ADD_RESIZE}"]
    return []


ADD_RESIZE = "add dict(type='Resize', size=(HEIGHT, WIDTH)) to the transforms"


def _name(dataset: Any) -> str:
    return type(getattr(dataset, "_dataset", dataset)).__name__  # mmengine's slice of a data set wraps it


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
            if abs(float(label.sum()) - 1) < 1e-3
            else f"its label's {classes} shares sum to {label.sum():.3g}, not 1"
        )
    number = label.item() if isinstance(label, Tensor) and label.numel() == 1 else label
    if isinstance(number, bool) or not hasattr(number, "__index__") or isinstance(number, Tensor):
        return f"its label is {short(label)}, expected one class number; several labels per image are not supported"
    if not 0 <= int(number) < classes:
        return f"its label is {number}, expected 0 to {classes - 1}"
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
    lines, problems = [], []
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
            size = "x".join(map(str, dataset.image_size))
            about = f"{len(dataset):,} images of {size}, {len(dataset.classes)} classes"
            lines.append(f"{split:8} {about}, {len(loader):,} batches")
    if problems:
        file = getattr(config, "filename", None)
        source = f"{file}: " if file else ""
        raise ConfigError([f"{source}{line}" for line in problems])
    return lines


def open_all(configs: Sequence[Mapping[str, Any] | Config]) -> None:
    """Opens the data of many runs, those that are the same once.

    Raises:
        ConfigError: with everything that is wrong, one line each.
    """
    problems: dict[str, None] = {}
    seen = set()
    for config in configs:
        parts = {split: config.get(f"{split}_dataloader") for split in SPLITS}
        key = json.dumps(parts, sort_keys=True, default=repr)
        if key in seen:
            continue
        seen.add(key)
        try:
            open_splits(config)
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
    if problems:
        raise ConfigError(list(problems))


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
"""What schedulers, users, ``sbatch --signal=USR1@60`` and a terminal that is closed send."""


class _Worker(ForkProcess):
    """A process that leaves what :data:`SIGNALS` ask for to its parent; a SIGTERM from the parent itself ends it."""

    def start(self) -> None:
        # Blocked until `run` has said what they mean in the new process: there is no moment in which one kills it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def run(self) -> None:
        ignored = [number for number in SIGNALS if number != signal.SIGTERM]
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ignored)
        # SIGTERM stays blocked, for a handler in Python is not told who sent it; and it is how torch and Python end a
        # worker that hangs.
        threading.Thread(target=_end_when_the_parent_says_so, args=(os.getppid(),), daemon=True).start()
        super().run()


def _end_when_the_parent_says_so(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class _Context(ForkContext):
    Process = _Worker


def worker_context() -> BaseContext | None:
    """What a DataLoader makes its workers by; None, its own way, where processes are not forked or signals not told."""
    forks = multiprocessing.get_start_method() == "fork"
    return _Context() if forks and hasattr(signal, "sigwaitinfo") else None


def begin(loader: Iterable[Any]) -> Iterator[Any]:
    """Iterates over a DataLoader, to which a worker that is gone is an error where its batch is asked for.

    Torch's own handler of SIGCHLD raises it at once, which may be in the middle of a step or of a save.
    """
    if threading.current_thread() is not threading.main_thread():
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    signal.signal(signal.SIGCHLD, before)
    return batches
