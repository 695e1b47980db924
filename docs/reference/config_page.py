"""The page of all config keys, from signatures and docstrings of what a config builds."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from inspect import Parameter
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import config_texts as texts
from docstrings import described, plain, summary
from mmengine.registry import DATA_SAMPLERS, DATASETS, HOOKS, METRICS, OPTIM_WRAPPERS, OPTIMIZERS, PARAM_SCHEDULERS
from torch import nn
from torch.utils.data import DataLoader

from fbt_plugins import ARCHITECTURES, FUSIONS, LOSSES, load_plugins
from fbt_plugins.config import matrix
from fbt_plugins.config.loading import shipped_methods
from fbt_plugins.config.options import ABSENT, DEFAULT_HOOKS, OPTIONS
from fbt_plugins.data import ImageDataset, InMemoryDataset, Mixing
from fbt_plugins.data.transforms import REFUSED as NO_TRANSFORMS
from fbt_plugins.distill import edge, edge_schedule
from fbt_plugins.distill.distiller import Distiller
from fbt_plugins.engine import loops, metrics
from fbt_plugins.engine.check.data import LOADER_KEYS
from fbt_plugins.engine.optim import param_groups
from fbt_plugins.engine.runner import DistillRunner
from fbt_plugins.registry.signatures import parameters_of
from fbt_plugins.search.settings import COSTS, MEASURED, OneShot, Settings

OURS = ("fbt_plugins", "fbt_architectures", "fbt_fusions", "fbt_losses")
"""Packages of this distribution; other plugins that are installed are not on the page."""
Rows = Iterable[tuple[str, str, str, str]]


def config_page() -> str:
    """The whole page."""
    load_plugins()
    return "\n".join([*_beginning(), *_model(), *_data(), *_training(), *_options(), *_many_runs()]).rstrip() + "\n"


def _beginning() -> Iterator[str]:
    yield "<!-- made by docs/reference/make.py from the code: do not edit -->"
    yield "# Config keys\n"
    yield "Every key that a config may have: its type, its default and its effect.\n"
    yield (
        "A config is a Python file of such keys ([guides/training.md](../guides/training.md) shows how they are used). "
        "`_base_` names configs that it begins with. Names that begin with an underscore are helper variables. "
        "`fbt train CONFIG --check` names every key that is wrong, with the nearest right ones. "
        "`--cfg-options a.b=1` sets a key from the command line.\n"
    )
    yield "## Top level\n"
    known = {*list(inspect.signature(DistillRunner.__init__).parameters)[1:], *OPTIONS, *matrix.KEYS} - {"cfg"}
    listed = [key for group in texts.TOP.values() for key in group]
    _same("keys at the top", listed, known)
    for group, keys in texts.TOP.items():
        yield f"### {group}\n"
        yield from _table([_top_row(key, about) for key, about in keys.items()])


def _top_row(key: str, about: str | None) -> tuple[str, str, str, str]:
    parameter = inspect.signature(DistillRunner.__init__).parameters.get(key)
    option = OPTIONS.get(key)
    default = option.default if option and option.default is not ABSENT else ABSENT
    if default is ABSENT:
        default = parameter.default if parameter is not None else None
    required = key in ("model", "train_dataloader", "train_cfg", "optim_wrapper")
    if about is None and option is not None:
        about = _sentence(option.about)
        if key in ("default_hooks", "search", "randomness") or (option.makes and key != "compile"):
            about += f" See [{key}](#{key})."
    kind = texts.TYPES.get(key) or ("dict" if option and option.makes else _type(parameter and parameter.annotation))
    shown = texts.DEFAULTS.get(key) or ("required" if required else _code(default))
    return key, kind or "dict", shown, about or ""


def _model() -> Iterator[str]:
    yield "## model\n"
    yield from _arguments(Distiller, without=("image_size", "data_info", "data_preprocessor"))
    yield "`image_size`, `data_info` and `data_preprocessor` come from the run; leave them out.\n"
    yield "### model.student and model.teacher\n"
    yield (
        "`dict(type=NAME, ...)`. NAME is one of these architectures, or one that a plugin registered; `huggingface` "
        "comes with the distribution `fbt-huggingface`.\n"
    )
    for name, thing in _own(ARCHITECTURES.module_dict):
        yield from _part(name, thing)
    yield "### model.edges\n"
    yield 'A list. Each entry is a name, such as `"teacher_to_student"`, or a dict with these keys:\n'
    known = dict(_rows(edge.Edge)) | dict(_rows(edge_schedule.Schedule))
    rows = [(name, *texts.EDGE.get(name, known.get(name, ("", "", "")))) for name in edge.OPTIONS]
    yield from _table(rows)
    times = ", ".join(f"`{name}`" for name in edge_schedule.TIMES)
    yield f"`model.task_loss` takes {times} as well.\n"
    yield "### model.fusion\n"
    yield "`None`, one `dict(type=NAME, ...)`, or a dict of named ones. Every fusion takes:\n"
    yield from _table([(name, *row) for name, row in texts.FUSION.items()])
    yield from _parts(FUSIONS.module_dict)
    yield "### Losses\n"
    yield (
        "`feature_loss`, `logit_loss`, `stage_loss` and `task_loss` are `dict(type=NAME, ...)`. Their formulas and "
        "sources are in [methods](methods.md). Every loss takes:\n"
    )
    yield from _table([(name, *row) for name, row in texts.LOSS.items()])
    yield from _parts(LOSSES.module_dict)


def _data() -> Iterator[str]:
    yield "## Dataloaders\n"
    yield "`train_dataloader`, `val_dataloader`, `test_dataloader`, and a metric's `bank`:\n"
    signature = inspect.signature(DataLoader.__init__).parameters
    _same("keys of a loader", (k for k in texts.LOADER if k not in signature), set(LOADER_KEYS) - signature.keys())
    required = ("dataset", "sampler", "batch_size")
    rows = []
    for key, about in texts.LOADER.items():
        default = "required" if key in required else _code(getattr(signature.get(key), "default", None))
        rows.append((key, _LOADER_TYPES.get(key, ""), "`False`" if key == "in_memory" else default, about))
    yield from _table(rows)
    yield "All other arguments of torch's `DataLoader` may be given too.\n"
    yield "### Data sets\n"
    yield "`dataset=dict(type=NAME, ...)`. Each takes `transforms`; the run gives it its seed.\n"
    for name, thing in _own(DATASETS.module_dict):
        yield from _part(name, thing, without=("seed",))
    yield "### Samplers\n"
    for name, thing in _own(DATA_SAMPLERS.module_dict):
        yield from _part(name, thing, without=("dataset", "seed"))
    yield from (f"- `{name}`: {about}" for name, about in texts.SAMPLERS.items())
    yield "\n### Transforms\n"
    yield (
        "`transforms=[dict(type=NAME, ...), ...]`, applied in this order. NAME is any class of "
        "`torchvision.transforms.v2` with its own arguments, `timm` (timm's `create_transform`), or one that you "
        "registered in mmengine's `TRANSFORMS`. These are refused:\n"
    )
    yield from (f"- `{name}`: {why}." for name, why in NO_TRANSFORMS.items())
    yield "\n### data_preprocessor\n"
    yield f"{summary(Mixing)}\n"
    yield from _arguments(Mixing, without=("num_classes", "all_labelled"))
    yield "### Evaluators\n"
    yield "`val_evaluator` and `test_evaluator`: `dict(type=NAME, ...)`, or a list of them.\n"
    assert metrics
    for name, thing in _own(METRICS.module_dict):
        yield from _part(name, thing, without=("collect_device", "prefix", "collect_dir"))


def _training() -> Iterator[str]:
    yield "## Training keys\n"
    yield "### train_cfg\n"
    epochs, steps = (parameters_of(kind, follow=True)[0] for kind in (loops.EpochLoop, loops.IterLoop))
    rows: list[tuple[str, str, str, str]] = []
    for key, about in texts.LOOPS.items():
        if isinstance(about, tuple):
            rows.append((key, *about))
            continue
        kinds = [p[key] for p in (epochs, steps) if key in p]
        defaults = list(dict.fromkeys(_code(k.default) for k in kinds))
        count = "list" if key == "dynamic_intervals" else "int"
        shown = (
            "required" if key.startswith("max_") else " (epochs), ".join(defaults) + " (steps)" * (len(defaults) > 1)
        )
        rows.append((key, count, shown, about))
    _same("keys of train_cfg", (r[0] for r in rows), {*epochs, *steps, "by_epoch"} - {"runner", "dataloader"})
    yield from _table(rows)
    yield "### optim_wrapper\n"
    _same(
        "paramwise_cfg",
        [key.partition(".")[2] for key in texts.WRAPPER if key.startswith("paramwise_cfg.")],
        param_groups.OPTIONS,
    )
    own = dict(_rows(OPTIM_WRAPPERS.module_dict["AutocastOptimWrapper"]))
    yield from _table([(key, *(row or own[key])) for key, row in texts.WRAPPER.items()])
    yield "#### optimizer\n"
    yield "NAME is any class of `torch.optim`, with its own arguments. Those that recipes take:\n"
    yield "| type | Arguments and defaults |\n|---|---|"
    yield from _foreign(OPTIMIZERS.module_dict, texts.OPTIMIZERS)
    yield "\n### param_scheduler\n"
    yield "A `dict(type=NAME, ...)` or a list of them, in mmengine's names. Every one takes:\n"
    yield from _table([(key, *row) for key, row in texts.SCHEDULE.items()])
    yield "| type | Effect | Arguments and defaults |\n|---|---|---|"
    arguments = {name: chosen for name, (_, chosen) in texts.SCHEDULERS.items()}
    for name, row in zip(texts.SCHEDULERS, _foreign(PARAM_SCHEDULERS.module_dict, arguments), strict=True):
        yield row.replace("` | ", f"` | {texts.SCHEDULERS[name][0]} | ", 1)
    yield "\n`eta_min`, `eta_max` and `min_value` are learning rates; all other arguments are shares of it.\n"
    yield "### auto_scale_lr\n"
    yield from _table([(key, *row) for key, row in texts.SCALE.items()])
    yield "### randomness\n"
    known = list(inspect.signature(DistillRunner.set_randomness).parameters)[1:]
    _same("randomness", texts.RANDOMNESS, known)
    yield from _table([(key, *row) for key, row in texts.RANDOMNESS.items()])
    yield "### default_hooks\n"
    yield (
        "What every run does beside training, by name. A dict changes a hook's arguments, "
        "`default_hooks=dict(progress=dict(interval=10))`; `None` drops it.\n"
    )
    for key, config in DEFAULT_HOOKS.items():
        thing = HOOKS.module_dict[config["type"]]
        yield f"#### {key}\n"
        own = thing.__module__.partition(".")[0] in OURS
        yield f"`{config['type']}`: {summary(thing) if own else texts.HOOKS[key]}\n"
        yield from _arguments(thing) if own else ()
    others = [name for name, _ in _own(HOOKS.module_dict) if name not in {c["type"] for c in DEFAULT_HOOKS.values()}]
    yield "Of several processes also: " + ", ".join(f"`{name}`" for name in others) + ".\n"


def _options() -> Iterator[str]:
    yield "## Options of a run\n"
    for key, option in OPTIONS.items():
        if option.makes is None or option.makes.startswith("torch"):
            continue
        yield f"### {key}\n"
        yield f"{plain(described(option.factory)[0])}\n"
        yield from _arguments(option.factory)


def _many_runs() -> Iterator[str]:
    yield "## Matrices\n"
    yield "A config with `pairs` and `methods` is a matrix: one run for each pair, method and seed.\n"
    yield from _table([(key, *row) for key, row in texts.MATRIX.items()])
    yield "### Shipped methods\n"
    yield "`configs/_base_/methods.py` has these, for matrices and for `fbt distill --method NAME`.\n"
    yield "| Method | What it is |\n|---|---|"
    yield from (f"| `{name}` | {_cell(plain(m.get('about', '')))} |" for name, m in shipped_methods()[0].items())
    yield "\n## search\n"
    yield "`search=dict(...)`, for `fbt search`:\n"
    yield from _arguments(Settings)
    models, costs = (" and ".join(f"`{name}`" for name in names) for names in (MEASURED, COSTS))
    yield (
        f"Objectives are what validation measures of {models}, in percent (`student_top1`, `fusion_knn`), which is "
        f"maximised, and {costs}, which are minimised: milliseconds of a training step, and parameters that a fusion "
        "model adds.\n"
    )
    yield "Each entry of `space` has a dotted config key, and one of these:\n"
    yield "| Value | Effect |\n|---|---|"
    yield from (f"| `{value}` | {about} |" for value, about in texts.SPACE.items())
    yield "\n### search.one_shot\n"
    yield from _arguments(OneShot)


# ---- parts of pages --------------------------------------------------------------------------------------------------

_LOADER_TYPES = dict.fromkeys(("batch_size", "num_workers", "num_batch_per_epoch", "prefetch_factor"), "int") | {
    **dict.fromkeys(("dataset", "sampler", "batch_sampler", "collate_fn"), "dict"),
    **dict.fromkeys(("drop_last", "in_memory", "persistent_workers", "pin_memory"), "bool"),
    "timeout": "float",
    "worker_init_fn": "dict",
}


def _own(known: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What this distribution registers, by name."""
    return sorted((name, thing) for name, thing in known.items() if thing.__module__.partition(".")[0] in OURS)


def _parts(known: Mapping[str, Any]) -> Iterator[str]:
    for name, thing in _own(known):
        yield from _part(name, thing, whole=False)


def _part(name: str, thing: Any, without: Sequence[str] = (), whole: bool = True) -> Iterator[str]:
    """A registered thing: what it is, and its arguments."""
    yield f"#### {name}\n"
    yield f"{plain(described(thing)[0]) if whole else summary(thing)}\n"
    yield from _arguments(thing, without)


def _arguments(thing: Any, without: Sequence[str] = ()) -> Iterator[str]:
    rows = [(name, *row) for name, row in _rows(thing) if name not in without]
    yield from _table(rows) if rows else ("It has no keys of its own.\n",)


def _rows(thing: Any) -> Iterator[tuple[str, tuple[str, str, str]]]:
    """(name, (type, default, effect)) of each argument."""
    accepted, _ = parameters_of(thing, follow=True)
    known = described(thing)[1]
    for name, parameter in accepted.items():
        about = known.get(name, "")
        if about.startswith("see `"):
            about = _OF[about.split("`")[1]].get(name, "")
        elif about.startswith("see :class:"):
            about = next((d[name] for d in map(_base_text, inspect.getmro(thing)[1:]) if name in d), about)
        default = "required" if parameter.default is Parameter.empty else _code(parameter.default)
        yield name, (_type(parameter.annotation), default, _sentence(plain(about)) if about else "")
    for p in inspect.signature(thing).parameters.values():
        if p.kind is p.VAR_KEYWORD and p.name in known and not inspect.isclass(thing):
            yield "...", ("", "", _sentence(plain(known[p.name])))


def _base_text(base: type) -> dict[str, str]:
    return described(base)[1]


_IMAGES = _base_text(ImageDataset)
_OF = {"ImageDataset": _IMAGES, "InMemoryDataset": {**_base_text(InMemoryDataset), **_IMAGES}}


def _foreign(known: Mapping[str, Any], chosen: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Rows of what others wrote: its arguments with their defaults."""
    for name, arguments in chosen.items():
        signature = parameters_of(known[name], follow=True)[0]
        shown = []
        for argument in arguments:
            default = signature[argument].default
            shown.append(argument if default in (Parameter.empty, None) else f"{argument}={_plain_value(default)}")
        yield f"| `{name}` | " + ", ".join(f"`{text}`" for text in shown) + " |"


def _plain_value(value: Any) -> str:
    return repr(round(value, 4) if isinstance(value, float) and value > 1e-4 else value)


def _table(rows: Rows) -> Iterator[str]:
    yield "| Key | Type | Default | Effect |\n|---|---|---|---|"
    for key, kind, default, about in rows:
        if not about:
            raise SystemExit(f"{key}: no docstring says what it is")
        yield f"| `{key}` | {kind} | {default} | {_cell(about)} |"
    yield ""


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def _code(value: Any) -> str:
    return f"`{list(value) if isinstance(value, tuple) else value!r}`".replace("|", r"\|")


_NAMES = ("timm", "torch", "mmengine", "tau", "lambda", "beta", "gamma", "alpha", "k ")
"""Names that begin with a small letter everywhere."""


def _sentence(text: str) -> str:
    if not text.startswith(_NAMES) and (text[1:2].islower() or text[1:2] == " "):
        text = text[:1].upper() + text[1:]
    return text if text.endswith((".", ":", ")", "|")) else f"{text}."


def _type(annotation: Any) -> str:
    """An annotation as people read it: "int or list of str"; None is not said."""
    if annotation in (None, Parameter.empty, Any, NoneType) or annotation is nn.Module:
        return ""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(filter(None, map(_type, inner))))
    if origin is Literal:
        return " or ".join(f"`{value!r}`" for value in inner)
    kind = origin or annotation
    if kind in (list, tuple, Sequence):
        of = _type(inner[0]) if inner else ""
        return f"list of {of}" if of and " or " not in of else "list"
    if kind in (dict, Mapping) or not isinstance(kind, type) or kind.__module__ not in ("builtins",):
        return "dict"
    return kind.__name__


def _same(what: str, written: Iterable[str], known: Iterable[str]) -> None:
    """Stops where the words are not about what the code takes."""
    if difference := {*written} ^ {*known}:
        raise SystemExit(f"{what}: {', '.join(sorted(difference))}: in the code or in config_texts.py only")
