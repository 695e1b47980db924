"""Configs: mmengine's, with inherited siblings dropped where a ``type`` or a model's ``name`` changes."""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config

from ..console import relative
from ..errors import ConfigError, FBTError, one_line, user_path
from ..registry.loading import load_plugins
from .locating import config_folder, find_config
from .matrix import Matrix
from .merging import merge, merge_options
from .mmengine_patches import RepeatedKey, base_circle, is_lazy, merging_our_way, without_chatter
from .options import DEFAULTS

PATHS = ("work_dir", "resume", "load_from", "publish")
"""Options of a run that are a file or folder."""


@dataclass(frozen=True)
class Arguments:
    """What a command line says over a config; where it says nothing (None, False), the config's values stay.

    Attributes:
        work_dir, launcher, resume, device: the config's options of these names.
        seed: ``randomness.seed``.
        amp: ``optim_wrapper.precision``.
        compile: whether to compile; how, the config says.
        command: what was typed.
    """

    work_dir: str | None = None
    launcher: str = "none"
    resume: bool | str | None = None
    device: str | None = None
    seed: int | None = None
    amp: str | None = None
    compile: bool = False
    command: str | None = None

    def put_over(self, config: Config) -> None:
        """Changes a config."""
        config.launcher = self.launcher
        for key in ("work_dir", "resume", "device", "command"):
            if (value := getattr(self, key)) is not None:
                config[key] = value
        if self.seed is not None:
            config.randomness.seed = self.seed
        if self.compile:
            config.compile = config.compile or True
        if self.amp and config.get("optim_wrapper"):
            config.optim_wrapper.precision = self.amp


def load_config(
    path: str | Path,
    options: Mapping[str, Any] | None = None,
    pair: str | None = None,
    method: str | None = None,
    arguments: Arguments | None = None,
) -> Config:
    """Reads a config file as mmengine does, takes one cell of it where it is a matrix, and merges ``--cfg-options``.

    All plugins are loaded then, those that it names as ``custom_imports`` too.

    Args:
        path: a config file (.py, .yaml, .json), with ``_base_`` as in mmengine, or a shipped one's name.
        options: values by dotted key.
        pair, method: which cell of a matrix; see :class:`Matrix`.
        arguments: what else the command line says.

    Raises:
        ConfigError: if the file is missing or cannot be read, is a matrix and the cell is not given or not there (or
            the other way round), or an option has no place in it.
    """
    config = _load(path)
    contents = config.to_dict()
    with blaming(path):
        if (matrix := Matrix.of(contents)) is not None:
            contents = matrix.cell(pair, method)
        elif pair is not None or method is not None:
            raise ConfigError("it is no matrix (it has no pairs and methods); drop --pair and --method")
    contents = complete(contents, options or {})
    try:
        config = Config(contents, config.text, config.filename, config.env_variables)
    except KeyError as error:  # a few names are mmengine's own
        raise ConfigError(f"config {path}: {error.args[0]}") from error
    _import_plugins(config, path)
    if arguments is not None:
        arguments.put_over(config)
    return config


def load_plugins_of(path: str | Path) -> None:
    """Loads all plugins, those too that a config file names as ``custom_imports``; nothing else of it is looked at.

    Raises:
        ConfigError: if the file cannot be read, or a module of it cannot be imported.
    """
    _import_plugins(_load(path), path)


def _import_plugins(config: Config, path: str | Path) -> None:
    imports = config.get("custom_imports") or {}
    if not isinstance(imports, Mapping) or isinstance(imports.get("imports", ()), str):
        raise ConfigError(f"config {path}: custom_imports: write dict(imports=['module', ...]), not {imports!r}")
    plugins = load_plugins()
    for module in imports.get("imports", ()):
        try:
            plugins.load_module(module)
        except FBTError as error:
            raise ConfigError(f"config {path}: custom_imports: {error}") from error


def run_config(
    path: str | Path,
    options: Mapping[str, Any] | None = None,
    pair: str | None = None,
    method: str | None = None,
    arguments: Arguments | None = None,
) -> Config:
    """The config of one run, as :func:`load_config` reads it, with a folder for the run where nobody names one.

    Raises:
        ConfigError: as :func:`load_config` does.
    """
    config = load_config(path, options, pair, method, arguments or Arguments())
    for key in PATHS:  # of a command line and of the file: no shell has seen the latter's "~"
        if isinstance(value := config.get(key), str) and value.startswith("~"):
            config[key] = str(user_path(value))
    config.work_dir = config.get("work_dir") or default_work_dir(path, config)
    return config


def complete(contents: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config with everything written out, so that options can reach it and config.py is complete.

    Raises:
        ConfigError: if an option has no place in it.
    """
    return merge_options(merge(DEFAULTS, contents), options)


def config_of(contents: Mapping[str, Any], arguments: Arguments) -> Config:
    """The config of a run that comes from no file, complete.

    Args:
        contents: what a file would say.
        arguments: what the command line says over it.
    """
    config = Config(complete(contents, {}))
    arguments.put_over(config)
    return config


@cache
def shipped_methods() -> tuple[dict[str, Any], dict[str, Any]]:
    """The methods of ``configs/_base_/methods.py`` by name, and ``model`` as all of them have it."""
    contents = _load(config_folder() / "_base_" / "methods.py").to_dict()
    return contents["methods"], contents["model"]


def load_matrix(path: str | Path) -> Matrix:
    """Reads a config file that is a matrix.

    Raises:
        ConfigError: if it is missing, cannot be read, or is none.
    """
    contents = _load(path).to_dict()
    with blaming(path):
        if (matrix := Matrix.of(contents)) is None:
            raise ConfigError("it is no matrix: it has no pairs and methods")
    return matrix


def default_work_dir(path: str | Path, config: Config) -> str:
    """The folder of a run whose config and command line name none: a cell's says pair, method and seed.

    That of a run that makes a teacher lies beside the teacher's file, and is called as that is.
    """
    if target := config.get("publish"):
        return str(Path(target).with_suffix(""))
    folder = Path("work_dirs") / Path(path).stem
    if cell := config.get("cell"):
        folder = folder / cell["pair"] / cell["method"] / f"seed_{config.randomness.seed}"
    return str(folder)


def _load(path: str | Path) -> Config:
    """A file's own contents, without its helper variables."""
    with merging_our_way(), without_chatter():
        config = _read(find_config(path))
    for name in [k for k in config if k.startswith("_")]:  # helper variables of the file
        config.pop(name)
    return config


@contextmanager
def blaming(path: str | Path) -> Iterator[None]:
    """Puts the file before what is wrong with its contents."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError([f"config {path}: {line}" for line in error.problems]) from error


def _read(path: Path) -> Config:
    """mmengine's reading of a file, with its errors on one line."""
    try:
        if path.suffix == ".py":
            text = path.read_text(encoding="utf-8")
            compile(text, str(path), "exec")
            if is_lazy(path):
                raise ConfigError(
                    f"config {path}: it imports modules, which mmengine takes for a lazy config; use _base_"
                )
            if re.search(r"\{\{\s*_base_\.[^}]*\}\}['\"]?\s*[*/+-]|[*/+-]\s*['\"]?\{\{\s*_base_\.", text):
                raise ConfigError(f"config {path}: {{{{_base_.x}}}} in an expression becomes a string; write _base_.x")
        return Config.fromfile(str(path), import_custom_modules=False)
    except SyntaxError as error:
        where = f"{error.filename}, line {error.lineno}: " if error.lineno else ""
        raise ConfigError(f"config {where or f'{path}: '}{error.msg} {(error.text or '').strip()}".rstrip()) from error
    except RepeatedKey as error:
        raise ConfigError(f"config {path}: it or its _base_: {error}; keep one of them") from error
    except FBTError:
        raise
    except RecursionError as error:
        if (circle := base_circle(path)) is None:
            raise ConfigError(f"config {path}: {one_line(error)}") from error
        names = " -> ".join(map(relative, circle))
        raise ConfigError(f"config {path}: its _base_ leads back to itself: {names}") from error
    except (yaml.YAMLError, json.JSONDecodeError) as error:
        kind = "JSON" if isinstance(error, json.JSONDecodeError) else "YAML of plain values (its tags are not executed)"
        raise ConfigError(f"config {path}: it or its _base_ is no {kind}: {' '.join(str(error).split())}") from error
    except Exception as error:  # a config is code: anything can go wrong in it
        frames = [
            f for f in traceback.extract_tb(error.__traceback__) if f.filename.endswith((".py", ".yaml", ".json"))
        ]
        own = next((f for f in reversed(frames) if "mmengine" not in f.filename and f.filename != __file__), None)
        where = f"{own.filename}, line {own.lineno}" if own else str(path)
        raise ConfigError(f"config {where}: {one_line(error)}") from error
