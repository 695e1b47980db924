"""The models, on the meta device, and their losses."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from mmengine.registry import METRICS

from ...distill.distiller import Distiller
from ...distill.edge import SLOTS, TEACHER, parse_edges
from ...distill.edge_schedule import TIMES
from ...errors import FBTError, one_line
from ...models.weightless import on_meta
from ...registry.registries import ARCHITECTURES, FUSIONS, LOSSES
from ..hooks.checkpoints import AUTO
from ..hooks.topk import TopK
from ..metrics import unmeasurable
from ..optim.schedules import as_list
from ..training_mode import stage_problems
from .data import described
from .findings import Findings


def model(findings: Findings, without_checkpoint: bool) -> Distiller | None:
    """Builds the distiller without weights: its shapes are right, its weights are nowhere.

    Args:
        findings: to which everything that is wrong with the model goes.
        without_checkpoint: whether the teacher's is not there yet.
    """
    config = findings.config.get("model")
    if not isinstance(config, Mapping):
        findings.problems += [f"model: expected a dict, got {config!r}"] if config is not None else []
        return None
    options = {k: v for k, v in config.items() if k != "type"}
    if config.get("type", "Distiller") != "Distiller":
        findings.problems.append(f"model.type: {config['type']!r} is not 'Distiller'")
    findings.signature(Distiller, options, "model")
    options = {k: v for k, v in options.items() if k in inspect.signature(Distiller).parameters}
    if "student" not in options:
        return None
    if without_checkpoint:
        options["teacher"] = {k: v for k, v in options["teacher"].items() if k != "checkpoint"}
    info = _data_info(findings)
    try:
        with on_meta():
            distiller = Distiller(**options, **info)
        findings.problems += _channel_problems(distiller) or stage_problems(distiller)
        findings.problems += _unmeasurable(findings, distiller) + _not_followed(findings, distiller)
        return distiller
    except FBTError as error:
        findings.problems += str(error).splitlines()
        if any(line.startswith(("model.student", "model.teacher")) for line in findings.problems):
            _parts(findings, options)  # the distiller gave up before it came to these
    except Exception as error:  # a third party's architecture may fail in any way
        findings.problems.append(f"model cannot be built: {one_line(error)}")
    return None


def parts(findings: Findings, without_checkpoint: bool, built: dict[str, list[str]]) -> None:
    """Checks the parts of a model, each by itself.

    Args:
        findings: to which everything that is wrong with them goes.
        without_checkpoint: whether the teacher's is not there yet.
        built: what is wrong with students and teachers that have been built before, by their configs; it grows.
    """
    config = findings.config.get("model")
    if not isinstance(config, Mapping):
        findings.problems += [f"model: expected a dict, got {config!r}"] if config is not None else []
        return
    findings.signature(Distiller, config, "model", extra=("type",))
    for role in ("student", "teacher"):
        options = config.get(role)
        if without_checkpoint and role == "teacher" and isinstance(options, Mapping):
            options = {key: value for key, value in options.items() if key != "checkpoint"}
        if options is not None:
            if (key := f"{role}{options!r}") not in built:
                built[key] = _wrong_with(role, options)
            findings.problems += built[key]
    _parts(findings, config)


def _wrong_with(role: str, options: Any) -> list[str]:
    """What is wrong with a student or a teacher alone."""
    try:
        with on_meta():
            ARCHITECTURES.build(options)
    except FBTError as error:
        return [f"model.{role}: {line}" for line in error.lines()]
    except Exception as error:  # a third party's architecture may fail in any way
        return [f"model.{role} cannot be built: {one_line(error)}"]
    return []


def _unmeasurable(findings: Findings, distiller: Distiller) -> list[str]:
    """Metrics that cannot measure these models."""
    problems: list[str] = []
    for split in ("val", "test"):
        evaluator, loader = (findings.config.get(f"{split}_{part}") for part in ("evaluator", "dataloader"))
        dataset = loader.get("dataset") if isinstance(loader, Mapping) else None
        try:
            configs = evaluator if isinstance(evaluator, list | tuple) else [evaluator] if evaluator else []
            metrics = [METRICS.build(dict(config)) for config in configs]
            classes = described(dataset)[0] if isinstance(dataset, Mapping) else None
        except Exception:  # reported where data and metrics are checked
            continue
        problems += unmeasurable(metrics, split, distiller, classes)
    return problems


def _not_followed(findings: Findings, distiller: Distiller) -> list[str]:
    """What is to follow a figure that the validation does not have, or that never changes: the frozen teacher's."""
    config = findings.config
    kinds = [
        (METRICS.module_dict.get(str(metric.get("type"))), metric)
        for metric in as_list(config.get("val_evaluator"))
        if isinstance(metric, Mapping)
    ]
    if not kinds or not all(hasattr(kind, "key") for kind, _ in kinds):  # another's names show in the first validation
        return []
    keys = [f"top{k}" for kind, metric in kinds if kind is TopK for k in as_list(metric.get("topk", (1, 5)))]
    keys += [kind.key for kind, _ in kinds if kind is not TopK]
    names = [f"{model}_{key}" for key in keys for model in distiller.names if model != TEACHER]
    hooks = config.get("default_hooks")
    saves = hooks.get("checkpoint") if isinstance(hooks, Mapping) else None
    asked = {"default_hooks.checkpoint.save_best": saves.get("save_best") if isinstance(saves, Mapping) else None}
    for i, schedule in enumerate(as_list(config.get("param_scheduler"))):
        where = f"param_scheduler.{i}: monitor"
        if isinstance(schedule, Mapping) and not any(line.startswith(where) for line in findings.problems):
            asked[where] = schedule.get("monitor")
    problems = []
    for where, name in asked.items():
        if name in (None, AUTO, *names) or not isinstance(name, str):
            continue
        frozen = TEACHER in distiller.names and name in [f"{TEACHER}_{key}" for key in keys]
        what = "the teacher is frozen, so this never changes" if frozen else "no metric of the validation"
        problems.append(f"{where}: {name!r}: {what}; it can be {' or '.join(names)}")
    return problems


def _channel_problems(distiller: Distiller) -> list[str]:
    return [
        f"model.{role}: in_chans={model.in_chans}, but images have 3 channels (grey ones have the same three times); "
        f"drop in_chans"
        for role, model in distiller.models.items()
        if model.in_chans != 3
    ]


def _parts(findings: Findings, options: Mapping[str, Any]) -> None:
    """The losses, fusion and edges alone: a broken model must not hide what is wrong with them."""
    fusion = options.get("fusion") or {}
    if isinstance(fusion, Mapping):
        for name, strategy in {"": fusion}.items() if "type" in fusion else fusion.items():
            findings.typed(FUSIONS, strategy, f"model.fusion{'.' * bool(name)}{name}", extra=("splice", "tail"))
    defaults = {slot: options.get(f"{slot}_loss") for slot in SLOTS}
    for slot, config in defaults.items():
        findings.typed(LOSSES, config, f"model.{slot}_loss", extra=("weight",))
    findings.typed(LOSSES, options.get("task_loss"), "model.task_loss", extra=("weight", *TIMES))
    edges = findings.collect("", parse_edges, options.get("edges", ()), defaults) or []
    for edge in edges:
        for slot, loss in edge["losses"].items():
            if loss is not defaults[slot]:
                findings.typed(LOSSES, loss, f"model.edges.{edge['name']}.{slot}_loss", extra=("weight",))


def _data_info(findings: Findings) -> dict[str, Any]:
    """Image size and classes of the training data, where its class says so; images are not counted.

    That no image has a label is told by their having no classes.
    """
    loader = findings.config.get("train_dataloader")
    dataset = loader.get("dataset") if isinstance(loader, Mapping) else None
    if not isinstance(dataset, Mapping):
        return {}
    try:
        classes, size = described(dataset)
    except FBTError:
        return {}  # what is wrong with the transforms is reported where they are checked
    about = {} if classes is None else {"num_classes": classes} if classes else {"num_labelled": 0}
    return {"image_size": size, "data_info": {"num_samples": 1} | about}
