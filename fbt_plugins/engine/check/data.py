"""Data sets, samplers, transforms, evaluators and mixing."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from mmengine.registry import DATA_SAMPLERS, DATASETS, FUNCTIONS, METRICS
from mmengine.utils import get_object_from_string
from torch.multiprocessing import get_all_start_methods
from torch.utils.data import DataLoader

from ...data import ImageDataset, InMemoryDataset, Mixing, batched_transforms, build_transforms
from ...errors import nearest, repeated
from ...registry.signatures import parameters_of
from ..data_workers import AUTO
from ..loaders import ATTRIBUTES, BANK, CONTRACT, IN_ORDER, size_problems, without_labels
from ..optim.schedules import as_list
from .findings import Findings

SPLITS = ("train", "val", "test")
_EITHER = ("dataset", "sampler", "num_batch_per_epoch", "in_memory")
LOADER_KEYS = (*_EITHER, "batch_sampler", "collate_fn", "worker_init_fn")
_GIVEN = ("dataset", "sampler", "generator")
_OF_WORKERS = ("persistent_workers", "prefetch_factor", "timeout", "multiprocessing_context")
IN_MEMORY_KEYS = (*_EITHER, "batch_size", "drop_last")


def data(findings: Findings) -> None:
    """The data that a config names."""
    for section in SPLITS:
        classes, size = _loader(findings, f"{section}_dataloader", findings.config.get(f"{section}_dataloader"))
        evaluator = findings.config.get(f"{section}_evaluator")
        before = len(findings.problems)
        findings.typed(METRICS, evaluator, f"{section}_evaluator")
        if evaluator and len(findings.problems) == before:
            for metric in as_list(evaluator):
                findings.collect(f"{section}_evaluator", METRICS.build, dict(metric))
                if (bank := metric.get(BANK)) is not None:
                    _bank(findings, bank, section, metric["type"], size)
                if classes == 0 and getattr(METRICS.module_dict.get(metric["type"]), "needs_labels", False):
                    findings.problems.append(f"{section}_evaluator: {without_labels(metric['type'], section)}")
            _figures(findings, evaluator, f"{section}_evaluator")


def _figures(findings: Findings, evaluator: Any, where: str) -> None:
    """Figures of one name, of which a run could keep one: mmengine would stop at the first validation."""
    kinds = [METRICS.module_dict[metric["type"]] for metric in as_list(evaluator)]
    for kind in repeated(kind for kind in kinds if hasattr(kind, "key")):
        findings.problems.append(f"{where}: {kind.__name__} is there twice, and both give student_{kind.key}: keep one")


def described(dataset: Mapping[str, Any]) -> tuple[int | None, tuple[int, int] | None]:
    """Classes, and (height, width) of the images, of a data set's config, where its class tells; None where not.

    Raises:
        ConfigError: if its transforms are wrong, or fail on such images.
    """
    kind = DATASETS.module_dict.get(str(dataset.get("type")))
    if not (inspect.isclass(kind) and issubclass(kind, ImageDataset)):
        return None, None
    options = {key: value for key, value in dataset.items() if key not in ("type", "transforms")}
    return kind.describe(dataset.get("transforms", ()), **options)


def _bank(findings: Findings, bank: Any, section: str, metric: str, size: tuple[int, int] | None) -> None:
    """The labelled images that a metric compares with those of a split, of some size: a loader, maybe no sampler."""
    where = f"{section}_evaluator.{BANK}"
    if isinstance(bank, Mapping):
        bank = {"sampler": IN_ORDER, **bank}
    classes, own = _loader(findings, where, bank)
    if classes == 0:
        findings.problems.append(f"{where}: {metric} needs labels, and its images have none")
    if isinstance(bank, Mapping):
        findings.problems += size_problems(bank, own, size, section)


def _sets(kind: type, name: str) -> bool:
    """Whether objects of a class may have an attribute: no data set is built here, so its code is looked at."""
    if hasattr(kind, name) or hasattr(kind, "__getattr__"):
        return True
    codes = [function.__code__ for c in kind.__mro__ for function in vars(c).values() if inspect.isfunction(function)]
    while codes:
        code = codes.pop()
        if (
            name in code.co_names
            or name in code.co_consts
            or any(name in c for c in code.co_consts if isinstance(c, tuple))
        ):
            return True
        codes += [inner for inner in code.co_consts if inspect.iscode(inner)]
    return False


def _loader(findings: Findings, where: str, loader: Any) -> tuple[int | None, tuple[int, int] | None]:
    """Checks a loader; returns classes and size of its images, as :func:`described` tells them."""
    about: tuple[int | None, tuple[int, int] | None] = (None, None)
    if loader is None:
        return about
    if not isinstance(loader, Mapping):
        findings.problems.append(f"{where}: expected a dict, got {loader!r}")
        return about
    known = {key: value for key, value in loader.items() if (key, value) != ("num_workers", AUTO)}
    findings.signature(DataLoader, known, where, given=_GIVEN, extra=LOADER_KEYS)
    dataset, sampler = loader.get("dataset"), loader.get("sampler")
    if not isinstance(dataset, Mapping):
        findings.problems.append(f"{where}.dataset is missing")
    else:
        findings.typed(DATASETS, dataset, f"{where}.dataset", given=("seed",))
        takes, complete = parameters_of(DATASETS.module_dict.get(str(dataset.get("type")), dict), follow=True)
        if complete and "seed" not in takes:
            findings.problems.append(f"{where}.dataset: {dataset['type']} takes no seed, which a run gives: {CONTRACT}")
        kind = DATASETS.module_dict.get(str(dataset.get("type")))
        if inspect.isclass(kind) and (missing := [name for name in ATTRIBUTES if not _sets(kind, name)]):
            lacks = f"{dataset['type']} has no {' and no '.join(missing)}"
            findings.problems.append(f"{where}.dataset: {lacks}: {CONTRACT}")
        before = len(findings.problems)
        findings.collect("", build_transforms, dataset.get("transforms", ()), f"{where}.dataset.transforms")
        if len(findings.problems) == before:
            about = findings.collect(where, described, dataset) or about
        split = dataset.get("split", SPLITS[0])
        if inspect.isclass(kind) and issubclass(kind, ImageDataset) and split not in SPLITS:
            findings.problems.append(f"{where}.dataset: no split {split!r}{nearest(split, SPLITS)}")
        if not isinstance(in_memory := loader.get("in_memory", False), bool):
            findings.problems.append(f"{where}: in_memory must be True or False, not {in_memory!r}")
        elif in_memory:
            _in_memory(findings, loader, where, kind)
    if not isinstance(sampler, Mapping):
        findings.problems.append(
            f"{where}.sampler is missing: dict(type='SeededSampler', shuffle={where.startswith('train')})"
        )
    else:
        findings.typed(DATA_SAMPLERS, sampler, f"{where}.sampler", given=("dataset", "seed"))
        train = findings.config.get("train_cfg")
        by_epoch = not isinstance(train, Mapping) or train.get("by_epoch", True)
        ends = where != "train_dataloader" or by_epoch
        if sampler.get("type") == "InfiniteSampler" and ends:
            findings.problems.append(f"{where}.sampler: InfiniteSampler never ends an epoch; use SeededSampler")
    _parts(findings, loader, where)
    if not loader.get("num_workers"):
        for key in (key for key in _OF_WORKERS if loader.get(key) and not loader.get("in_memory")):
            findings.problems.append(f"{where}: {key} is for worker processes: set num_workers above 0, or drop it")
    batches = loader.get("num_batch_per_epoch")
    if batches is not None and (type(batches) is not int or batches < 1):
        findings.problems.append(f"{where}: num_batch_per_epoch must be a whole number, 1 or more, not {batches!r}")
    if loader.get("batch_size") is None:
        findings.problems.append(f"{where}: 'batch_size' is missing")
    return about


def _is_function(name: Any) -> bool:
    """Whether mmengine finds a function by this name: in its registry, or where a dotted name says."""
    if not isinstance(name, str) or name in FUNCTIONS.module_dict:
        return isinstance(name, str)
    return "." in name and all(name.split(".")) and callable(get_object_from_string(name))


def _parts(findings: Findings, loader: Mapping[str, Any], where: str) -> None:
    """What else a loader's config has: who makes batches, functions, and what torch would look at when it is built."""
    if loader.get("shuffle"):  # torch takes False beside a sampler
        findings.problems.append(f"{where}: shuffle is the sampler's: sampler=dict(type='SeededSampler', shuffle=True)")
    FUNCTIONS.import_from_location()
    for key in ("collate_fn", "worker_init_fn"):
        function = loader.get(key)
        name = function.get("type") if isinstance(function, Mapping) else None
        if function is not None and not _is_function(name):
            what = "dict(type=NAME) with the name of a function in mmengine's registry FUNCTIONS"
            findings.problems.append(f"{where}.{key}: expected {what}, not {function!r}; or drop it")
    if (batches := loader.get("batch_sampler")) is not None:
        given = ("sampler", "batch_size")
        kind = DATA_SAMPLERS.module_dict.get(str(batches.get("type"))) if isinstance(batches, Mapping) else None
        takes, complete = parameters_of(kind or dict, follow=True)
        if complete and not takes.keys() >= set(given):
            what = f"{batches['type']} makes no batches: it must take sampler and batch_size"
            findings.problems.append(f"{where}.batch_sampler: {what}; or drop it")
        else:
            findings.typed(DATA_SAMPLERS, batches, f"{where}.batch_sampler", given)
        if loader.get("drop_last"):
            findings.problems.append(f"{where}: drop_last is the batch_sampler's; set it to False here")
    for key in ("batch_size", "num_workers", "prefetch_factor"):
        if isinstance(number := loader.get(key), float) and number.is_integer():  # others are said to be none already
            findings.problems.append(f"{where}: {key} must be a whole number, not {number!r}")
    method, methods = loader.get("multiprocessing_context"), get_all_start_methods()
    if method is not None and method not in methods:
        findings.problems.append(f"{where}: multiprocessing_context is one of {', '.join(methods)}, not {method!r}")


def _in_memory(findings: Findings, loader: Mapping[str, Any], where: str, kind: Any) -> None:
    needless = [key for key in loader if key not in IN_MEMORY_KEYS]
    if needless:
        findings.problems.append(
            f"{where}: in_memory=True has no worker processes and collates nothing; drop {', '.join(needless)}"
        )
    if not (inspect.isclass(kind) and issubclass(kind, InMemoryDataset)):
        name = loader["dataset"].get("type")
        findings.problems.append(f"{where}: in_memory=True: {name} is not held in memory; set in_memory=False")
    else:
        transforms = loader["dataset"].get("transforms", ())
        findings.collect("", batched_transforms, transforms, f"{where}.dataset.transforms")


def mixing(findings: Findings) -> None:
    """Mixup and CutMix."""
    if options := findings.config.get("data_preprocessor"):
        before = len(findings.problems)
        findings.signature(Mixing, options, "data_preprocessor", given=("num_classes", "all_labelled"))
        if len(findings.problems) == before:
            findings.collect("data_preprocessor", lambda: Mixing(num_classes=1, **options))  # it checks its values
