"""Everything that is wrong with a config, found without data and without training."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import (
    DATA_SAMPLERS,
    DATASETS,
    HOOKS,
    METRICS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    VISBACKENDS,
    VISUALIZERS,
)
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, TestLoop, ValLoop
from torch.utils.data import DataLoader

from ..config.options import DEFAULT_HOOKS, OPTIONS
from ..data import ImageDataset, InMemoryDataset, Mixing, batched_transforms, build_transforms
from ..distill.distiller import Distiller
from ..distill.edge import SLOTS, parse_edges
from ..distill.edge_schedule import TIMES
from ..errors import ConfigError, FBTError, nearest, one_line
from ..models.weights import SUFFIX, misfit
from ..registry.registries import FUSIONS, LOSSES
from .device import resolve_device
from .hooks.checkpoints import find_resume
from .hooks.teacher_cache import refusals
from .runner import DistillRunner
from .signature_check import SignatureCheck
from .teacher_run import TeacherRun, missing_teacher

_NO_SHARDS = (
    "FSDP and DeepSpeed are not supported: they take parameters apart, and a fusion model runs stages that it shares "
    "with teacher and student; drop this key: --launcher sets up DistributedDataParallel"
)
OTHER_ENGINES = {
    "model_wrapper_cfg": _NO_SHARDS,
    "strategy": _NO_SHARDS,
    "runner_type": "there is one runner here, DistillRunner; drop this key",
}
SPLITS = ("train", "val", "test")
_EITHER = ("dataset", "sampler", "num_batch_per_epoch", "in_memory")
LOADER_KEYS = (*_EITHER, "batch_sampler", "collate_fn", "worker_init_fn")
IN_MEMORY_KEYS = (*_EITHER, "batch_size", "drop_last")


def check_config(config: Config) -> Distiller:
    """Holds every key against what will be built from it, and builds the models without weights.

    Args:
        config: as :func:`load_config` gives it.

    Returns:
        The distiller on the meta device (its shapes are right, its weights are nowhere).

    Raises:
        ConfigError: with all problems, one line each.
    """
    check = _Check(config)
    distiller = check.run()
    if check.problems:
        source = f"{config.filename}: " if config.filename else ""
        raise ConfigError([f"{source}{line}" for line in dict.fromkeys(check.problems)])
    assert distiller is not None  # else the reason is among the problems
    return distiller


class _Check(SignatureCheck):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config: dict[str, Any] = config.to_dict()
        self._wrong: set[str] = set()

    def run(self) -> Distiller | None:
        for section in (self._top_level, self._data, self._loops, self._optimizer, self._hooks):
            try:
                section()
            except (TypeError, AttributeError, ValueError, KeyError) as error:  # something of quite another form
                self.problems.append(f"config cannot be read: {one_line(error)}")
        randomness = self.config.get("randomness") or {}
        if isinstance(randomness, Mapping) and not isinstance(seed := randomness.get("seed"), int | None):
            self.problems.append(f"randomness.seed: a whole number, not {seed!r}")
        self._signature(DistillRunner.set_randomness, randomness, "randomness", ("self", "seed"), ("seed",))
        self._collect(
            "device", resolve_device, self.config.get("device"), self.config.get("launcher", "none") != "none"
        )
        if mixing := self.config.get("data_preprocessor"):
            self._signature(Mixing, mixing, "data_preprocessor", given=("num_classes",))
        for key in ("load_from", "resume"):
            value = self.config.get(key)
            if isinstance(value, str) and value != "auto" and not Path(value).is_file():
                self.problems.append(f"{key}: {value!r}: no such file")
        if self.config.get("resume") is True and self.config.get("work_dir"):
            self._collect("", find_resume, Path(self.config["work_dir"]))
        self._options()
        self._publish()
        distiller = self._model()
        self._teacher_run(distiller)
        cache = self.config.get("teacher_cache")
        if cache is not None and (not isinstance(cache, Mapping) or cache.get("required", True)):
            self.problems += refusals(distiller, self.config.get("data_preprocessor"))
        return distiller

    def _top_level(self) -> None:
        known = [*list(inspect.signature(DistillRunner.__init__).parameters)[1:], *OPTIONS]
        for key in self.config:
            if key in OTHER_ENGINES:
                self.problems.append(f"{key}: {OTHER_ENGINES[key]}")
            elif key not in known:
                hint = nearest(key, known) or "; helper variables of your own begin with an underscore"
                self.problems.append(f"unknown key {key!r}{hint}")
        for key in ("model", "work_dir", "train_dataloader", "train_cfg", "optim_wrapper"):
            if self.config.get(key) is None:
                self.problems.append(f"{key} is missing")

    # ---- sections -------------------------------------------------------------------------------------------------

    def _data(self) -> None:
        for section in SPLITS:
            self._loader(f"{section}_dataloader")
            evaluator = self.config.get(f"{section}_evaluator")
            before = len(self.problems)
            self._typed(METRICS, evaluator, f"{section}_evaluator")
            if evaluator and len(self.problems) == before:
                for metric in evaluator if isinstance(evaluator, list | tuple) else [evaluator]:
                    self._collect(f"{section}_evaluator", METRICS.build, dict(metric))

    def _loader(self, where: str) -> None:
        loader = self.config.get(where)
        if loader is None:
            return
        if not isinstance(loader, Mapping):
            self.problems.append(f"{where}: expected a dict, got {loader!r}")
            return
        self._signature(DataLoader, loader, where, given=("dataset", "sampler"), extra=LOADER_KEYS)
        dataset, sampler = loader.get("dataset"), loader.get("sampler")
        if not isinstance(dataset, Mapping):
            self.problems.append(f"{where}.dataset is missing")
        else:
            self._typed(DATASETS, dataset, f"{where}.dataset", given=("seed",))
            self._collect("", build_transforms, dataset.get("transforms", ()), f"{where}.dataset.transforms")
            kind = DATASETS.module_dict.get(str(dataset.get("type")))
            split = dataset.get("split", SPLITS[0])
            if inspect.isclass(kind) and issubclass(kind, ImageDataset) and split not in SPLITS:
                self.problems.append(f"{where}.dataset: no split {split!r}{nearest(split, SPLITS)}")
            if not isinstance(in_memory := loader.get("in_memory", False), bool):
                self.problems.append(f"{where}: in_memory must be True or False, not {in_memory!r}")
            elif in_memory:
                self._in_memory(loader, where, kind)
        if not isinstance(sampler, Mapping):
            self.problems.append(
                f"{where}.sampler is missing: dict(type='SeededSampler', shuffle={where.startswith('train')})"
            )
        else:
            self._typed(DATA_SAMPLERS, sampler, f"{where}.sampler", given=("dataset", "seed"))
        if not {"batch_size", "batch_sampler"} & loader.keys():
            self.problems.append(f"{where}: 'batch_size' is missing")

    def _in_memory(self, loader: Mapping[str, Any], where: str, kind: Any) -> None:
        needless = [key for key in loader if key not in IN_MEMORY_KEYS]
        if needless:
            self.problems.append(
                f"{where}: in_memory=True has no worker processes and collates nothing; drop {', '.join(needless)}"
            )
        if not (inspect.isclass(kind) and issubclass(kind, InMemoryDataset)):
            name = loader["dataset"].get("type")
            self.problems.append(f"{where}: in_memory=True: {name} is not held in memory; set in_memory=False")
        else:
            transforms = loader["dataset"].get("transforms", ())
            self._collect("", batched_transforms, transforms, f"{where}.dataset.transforms")

    def _loops(self) -> None:
        train = self.config.get("train_cfg") or {}
        if not isinstance(train, Mapping):
            self.problems.append(f"train_cfg: expected a dict, got {train!r}")
            return
        loop = EpochBasedTrainLoop if train.get("by_epoch", True) else IterBasedTrainLoop
        if train and not {"type", "by_epoch"} & train.keys():
            self.problems.append("train_cfg: 'by_epoch' is missing: True (with max_epochs) or False (with max_iters)")
        if train.get("type") is None:
            self._signature(loop, train, "train_cfg", given=("self", "runner", "dataloader"), extra=("by_epoch",))
        for section, kind in (("val", ValLoop), ("test", TestLoop)):
            parts = [self.config.get(f"{section}_{part}") for part in ("dataloader", "cfg", "evaluator")]
            if any(p is None for p in parts) and not all(p is None for p in parts):
                self.problems.append(
                    f"{section}_dataloader, {section}_cfg and {section}_evaluator: set all three or none"
                )
            elif parts[1] and "type" not in parts[1]:
                self._signature(kind, parts[1], f"{section}_cfg", given=("self", "runner", "dataloader", "evaluator"))

    def _optimizer(self) -> None:
        wrapper = self.config.get("optim_wrapper")
        if not isinstance(wrapper, Mapping):
            self.problems += [f"optim_wrapper: expected a dict, got {wrapper!r}"] if wrapper is not None else []
            return
        if isinstance(clip := wrapper.get("clip_grad"), Mapping):
            by_value = clip.get("type") == "value"
            function = torch.nn.utils.clip_grad_value_ if by_value else torch.nn.utils.clip_grad_norm_
            self._signature(function, clip, "optim_wrapper.clip_grad", given=("parameters",), extra=("type",))
        wrapper = {"type": "AutocastOptimWrapper", "constructor": "MergedGroupConstructor", **wrapper}
        extra = ("constructor", "paramwise_cfg", "optimizer")
        self._typed(OPTIM_WRAPPERS, wrapper, "optim_wrapper", given=("optimizer",), extra=extra)
        if not isinstance(wrapper.get("optimizer"), Mapping):
            self.problems.append("optim_wrapper.optimizer is missing: dict(type='AdamW', lr=0.001)")
        else:
            self._typed(OPTIMIZERS, wrapper["optimizer"], "optim_wrapper.optimizer", given=("params",))
        schedule = self.config.get("param_scheduler")
        given = ("optimizer", "param_name")
        self._typed(PARAM_SCHEDULERS, schedule, "param_scheduler", given, extra=("convert_to_iter_based",))
        if not self.problems:
            self._build_optimizer(wrapper["optimizer"], schedule)

    def _build_optimizer(self, optimizer: Mapping[str, Any], schedule: Any) -> None:
        """Optimizer and schedules of one number: they check their values when they are built."""
        try:
            where = "optim_wrapper.optimizer"
            given = {"params": [torch.nn.Parameter(torch.zeros(1))]}
            built = OPTIMIZERS.build(dict(optimizer), default_args=given)
            for i, one in enumerate(schedule if isinstance(schedule, list | tuple) else [schedule] * bool(schedule)):
                where = f"param_scheduler.{i}"
                options = {k: v for k, v in one.items() if k != "convert_to_iter_based"}
                PARAM_SCHEDULERS.build(options, default_args={"optimizer": built})
        except Exception as error:  # torch and mmengine refuse values with any exception
            self.problems.append(f"{where}: {one_line(error)}")

    def _hooks(self) -> None:
        hooks = self.config.get("default_hooks") or {}
        self._known_keys(hooks, DEFAULT_HOOKS, "default_hooks")
        for name in DEFAULT_HOOKS:
            self._typed(HOOKS, hooks.get(name), f"default_hooks.{name}", extra=("priority",))
        self._typed(HOOKS, self.config.get("custom_hooks"), "custom_hooks", extra=("priority",))
        if visualizer := self.config.get("visualizer"):
            self._typed(VISUALIZERS, visualizer, "visualizer")
            if isinstance(visualizer, Mapping):
                given = ("save_dir",)
                self._typed(VISBACKENDS, visualizer.get("vis_backends"), "visualizer.vis_backends", given)

    def _built(self, factory: Callable[..., Any], options: Any, where: str) -> Any:
        """Options of something that checks their values when it is built; None where they are wrong."""
        before = len(self.problems)
        self._signature(factory, options, where)
        return self._collect("", lambda: factory(**options)) if len(self.problems) == before else None

    def _options(self) -> None:
        """Those that are True or False, and those that something is made of."""
        for key, option in OPTIONS.items():
            value, factory = self.config.get(key), option.factory
            if value is None or (option.switch and isinstance(value, bool)):
                continue
            if option.switch and not (factory and isinstance(value, Mapping)):
                allowed = f"True, False or {option.makes}'s arguments" if option.makes else "True or False"
                self.problems.append(f"{key} must be {allowed.replace(':', '.')}, not {value!r}")
            elif option.switch and factory:
                self._signature(factory, value, key, given=("model",))
            elif factory and self._built(factory, value, key) is None:
                self._wrong.add(key)

    def _model(self) -> Distiller | None:
        model = self.config.get("model")
        if not isinstance(model, Mapping):
            self.problems += [f"model: expected a dict, got {model!r}"] if model is not None else []
            return None
        options = {k: v for k, v in model.items() if k != "type"}
        if model.get("type", "Distiller") != "Distiller":
            self.problems.append(f"model.type: {model['type']!r} is not 'Distiller'")
        self._signature(Distiller, options, "model")
        options = {k: v for k, v in options.items() if k in inspect.signature(Distiller).parameters}
        if "student" not in options:
            return None
        if self._missing_teacher():
            options["teacher"] = {k: v for k, v in options["teacher"].items() if k != "checkpoint"}
        info = self._data_info()
        try:
            with torch.device("meta"):
                return Distiller(**options, **info)
        except FBTError as error:
            self.problems += str(error).splitlines()
            if any(line.startswith(("model.student", "model.teacher")) for line in self.problems):
                self._parts(options)  # the distiller gave up before it came to these
        except Exception as error:  # a third party's architecture may fail in any way
            self.problems.append(f"model cannot be built: {one_line(error)}")
        return None

    def _missing_teacher(self) -> TeacherRun | None:
        return None if "teacher_run" in self._wrong else missing_teacher(self.config)

    def _teacher_run(self, distiller: Distiller | None) -> None:
        """The run that is to make a missing teacher, checked as well."""
        run = self._missing_teacher()
        config = run and self._collect("", run.load, self.config)
        if run is None or config is None:
            return
        if problem := run.refusal(self.config):
            self.problems.append(problem)
            return
        made = self._collect("teacher_run", check_config, config)
        if made is not None and distiller is not None and distiller.teacher is not None:
            problem = misfit(distiller.teacher.net.state_dict(), made.student.net.state_dict())
            self.problems += [f"teacher_run: what it makes does not fit model.teacher: {problem}"] if problem else []

    def _publish(self) -> None:
        """Where a run's student goes as a teacher."""
        if (target := self.config.get("publish")) is None:
            return
        if not isinstance(target, str) or Path(target).suffix != SUFFIX:
            self.problems.append(f"publish: a file NAME{SUFFIX}, not {target!r}")
        if not any(self.config.get(f"{split}_evaluator") for split in ("val", "test")):
            self.problems.append("publish: a teacher's accuracy must be known; set val_dataloader or test_dataloader")

    def _parts(self, options: Mapping[str, Any]) -> None:
        """The losses, fusion and edges alone: a broken model must not hide what is wrong with them."""
        fusion = options.get("fusion") or {}
        if isinstance(fusion, Mapping):
            for name, strategy in {"": fusion}.items() if "type" in fusion else fusion.items():
                self._typed(FUSIONS, strategy, f"model.fusion{'.' * bool(name)}{name}", extra=("splice", "tail"))
        defaults = {slot: options.get(f"{slot}_loss") for slot in SLOTS}
        for slot, config in defaults.items():
            self._typed(LOSSES, config, f"model.{slot}_loss", extra=("weight",))
        self._typed(LOSSES, options.get("task_loss"), "model.task_loss", extra=("weight", *TIMES))
        edges = self._collect("model.edges", parse_edges, options.get("edges", ()), defaults) or []
        for edge in edges:
            for slot, loss in edge["losses"].items():
                if loss is not defaults[slot]:
                    self._typed(LOSSES, loss, f"model.edges.{edge['name']}.{slot}_loss", extra=("weight",))

    def _data_info(self) -> dict[str, Any]:
        """Image size and classes of the training data, where its class says so; images are not counted."""
        loader = self.config.get("train_dataloader")
        dataset = loader.get("dataset") if isinstance(loader, Mapping) else None
        if not isinstance(dataset, Mapping) or dataset.get("type") not in DATASETS.module_dict:
            return {}
        kind = DATASETS.module_dict[dataset["type"]]
        if not (inspect.isclass(kind) and issubclass(kind, ImageDataset)):
            return {}
        try:
            classes, size = kind.describe(dataset.get("transforms", ()))
        except FBTError:
            return {}  # what is wrong with the transforms is reported where they are checked
        return {"image_size": size, "data_info": {"num_samples": 1} | ({"num_classes": classes} if classes else {})}
