"""Configs: mmengine's, with inherited siblings dropped where a ``type`` or a model's ``name`` changes."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.config.config import DELETE_KEY

from ..errors import ConfigError, FBTError, nearest
from ..plugins import load_plugins
from ..registry import one_line

IDENTITY = ("type", "name")
"""Keys that say what a dict is; where one changes, what the old one was told means nothing to the new one."""

DEFAULT_HOOKS: dict[str, dict[str, Any]] = {
    "step_seed": {"type": "StepSeedHook"},
    "sampler_seed": {"type": "DistSamplerSeedHook"},
    "param_scheduler": {"type": "ParamSchedulerHook"},
    "teacher_check": {"type": "TeacherCheckHook"},
    "progress": {"type": "ProgressHook"},
    "checkpoint": {"type": "AtomicCheckpointHook"},
    "stop": {"type": "StopHook"},
    "plain_checkpoint": {"type": "PlainCheckpointHook"},
    "summary": {"type": "SummaryHook"},
}
"""What every run does beside training; ``default_hooks`` in a config changes their arguments, or None drops one."""


DEFAULTS: dict[str, Any] = {
    "default_hooks": DEFAULT_HOOKS,
    "randomness": {"seed": 0},
    "teacher_cache": None,
    "ema": None,
    "compile": None,
    "channels_last": False,
}
"""What a config need not say."""


def load_config(path: str | Path, options: Mapping[str, Any] | None = None) -> Config:
    """Reads a config file as mmengine does and merges ``--cfg-options``.

    Args:
        path: a config file (.py, .yaml, .json), with ``_base_`` as in mmengine.
        options: values by dotted key.

    Raises:
        ConfigError: if the file is missing or cannot be read, or an option has no place in it.
    """
    path = Path(path)
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else Path()
        raise ConfigError(
            f"config {str(path)!r}: no such file{nearest(path.name, [p.name for p in folder.glob('*.py')], 0)}"
        )
    with _merging_our_way():
        config = _read(path)
    for name in [k for k in config if k.startswith("_")]:  # helper variables of the file
        config.pop(name)
    # Written out, so that options can reach them and config.py is complete.
    merged = merge_options(merge(DEFAULTS, config.to_dict()), options or {})
    object.__setattr__(config, "_cfg_dict", ConfigDict(merged))
    imports = config.get("custom_imports") or {}
    if not isinstance(imports, Mapping) or isinstance(imports.get("imports", ()), str):
        raise ConfigError(f"config {path}: custom_imports: write dict(imports=['module', ...]), not {imports!r}")
    for module in imports.get("imports", ()):
        try:
            load_plugins().load_module(module)
        except FBTError as error:
            raise ConfigError(f"config {path}: custom_imports: {error}") from error
    return config


def apply_arguments(
    config: Config,
    work_dir: str,
    launcher: str = "none",
    *,
    resume: bool | str | None = None,
    device: str | None = None,
    seed: int | None = None,
    amp: str | None = None,
    compile: bool = False,
) -> None:
    """Puts a command line's own options, where they are given, over a config's values."""
    config.work_dir, config.launcher = work_dir, launcher
    if resume is not None:
        config.resume = resume
    if device is not None:
        config.device = device
    if seed is not None:
        config.randomness.seed = seed
    if compile:
        config.compile = config.compile or True
    if amp and config.get("optim_wrapper"):
        config.optim_wrapper.precision = amp


def _read(path: Path) -> Config:
    """mmengine's reading of a file, with its errors on one line."""
    try:
        if path.suffix == ".py":
            text = path.read_text(encoding="utf-8")
            compile(text, str(path), "exec")
            if Config._is_lazy_import(str(path)):
                raise ConfigError(
                    f"config {path}: it imports modules, which mmengine takes for a lazy config; use _base_"
                )
            if re.search(r"\}\}['\"]?\s*[*/+-]|[*/+-]\s*['\"]?\{\{\s*_base_\.", text):
                raise ConfigError(f"config {path}: {{{{_base_.x}}}} in an expression becomes a string; write _base_.x")
        return Config.fromfile(str(path), import_custom_modules=False)
    except SyntaxError as error:
        where = f"{error.filename}, line {error.lineno}: " if error.lineno else ""
        raise ConfigError(f"config {where or f'{path}: '}{error.msg} {(error.text or '').strip()}".rstrip()) from error
    except FBTError:
        raise
    except Exception as error:  # a config is code: anything can go wrong in it
        frames = [
            f for f in traceback.extract_tb(error.__traceback__) if f.filename.endswith((".py", ".yaml", ".json"))
        ]
        own = next((f for f in reversed(frames) if "mmengine" not in f.filename and f.filename != __file__), None)
        where = f"{own.filename}, line {own.lineno}" if own else str(path)
        raise ConfigError(f"config {where}: {one_line(error)}") from error


@contextmanager
def _merging_our_way() -> Iterator[None]:
    """mmengine calls its merge by name, so a subclass could not replace it."""
    original = Config._merge_a_into_b
    Config._merge_a_into_b = staticmethod(lambda a, b, allow_list_keys=False: ConfigDict(merge(b, a)))
    try:
        yield
    finally:
        Config._merge_a_into_b = staticmethod(original)


def merge(base: Mapping[str, Any], child: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """A child config over its base, dict by dict.

    A dict whose ``type`` or ``name`` differs from the base's replaces it, as one with ``_delete_=True`` does; only a
    ``type`` that the child leaves out is kept.

    Raises:
        ConfigError: if a dict meets something else that is not None.
    """
    result = dict(base)
    for key, value in child.items():
        old, place = result.get(key), f"{where}{key}"
        if isinstance(value, Mapping):
            fresh = dict(value)
            delete = fresh.pop(DELETE_KEY, False)
            if isinstance(old, Mapping) and not delete:
                changed = any(k in fresh and k in old and fresh[k] != old[k] for k in IDENTITY)
                kept = {k: old[k] for k in ("type",) if k in old} if changed else old
                value = merge(kept, fresh, f"{place}.")
            elif old is not None and not delete:
                raise ConfigError(
                    f"{place} is a dict here and {old!r} in the base; add {DELETE_KEY}=True to replace it"
                )
            else:
                value = merge({}, fresh, f"{place}.")
        result[key] = value
    return result


def merge_options(config: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Puts ``--cfg-options`` into a config; those that name an item of a list replace it there.

    Raises:
        ConfigError: for each option whose parent is not in the config.
    """
    result, problems = dict(config), []
    # What a dict is comes before what it is told, in whatever order the options were typed.
    for key in sorted(options, key=lambda k: (k.split(".")[-1] not in IDENTITY, list(options).index(k))):
        try:
            result = _set(result, key.split("."), options[key], key)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(problems)
    return result


def _set(node: Any, keys: list[str], value: Any, whole: str, where: str = "") -> Any:
    key, rest = keys[0], keys[1:]
    if isinstance(node, list | tuple):
        if not key.isdigit() or int(key) >= len(node):
            raise ConfigError(f"--cfg-options {whole}: {where.rstrip('.')} is a list of {len(node)}; no item {key!r}")
        items = list(node)
        items[int(key)] = _set(items[int(key)], rest, value, whole, f"{where}{key}.") if rest else value
        return type(node)(items)
    if rest:
        if key not in node:
            raise ConfigError(f"--cfg-options {whole}: there is no {where}{key} in the config{nearest(key, node)}")
        below = {} if node[key] is None else node[key]
        if not isinstance(below, Mapping | list | tuple):
            raise ConfigError(f"--cfg-options {whole}: {where}{key} is {below!r}, it has nothing below it")
        return {**node, key: _set(below, rest, value, whole, f"{where}{key}.")}
    if key in IDENTITY and node.get(key, value) != value:
        node = {k: node[k] for k in ("type",) if k in node}
    return {**node, key: value}
