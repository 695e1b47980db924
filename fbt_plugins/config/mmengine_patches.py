"""Where mmengine's configs have no public way to what we need; a test of each says when it can go."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config, ConfigDict
from mmengine.fileio import JsonHandler, YamlHandler, register_handler
from mmengine.logging import MMLogger

from ..errors import ConfigError
from .matrix import yielding
from .merging import merge


@contextmanager
def merging_our_way() -> Iterator[None]:
    """Lays files over their ``_base_`` with our :func:`merge` while mmengine reads them.

    mmengine's own keeps the arguments of an inherited dict whose ``type`` a child changes: a new loss would inherit the
    old one's gamma. And it knows no matrices, whose tables have to give way to a child. It calls its merge by name, on
    Config itself, so a subclass of Config cannot replace it.
    """
    original = Config._merge_a_into_b
    Config._merge_a_into_b = staticmethod(lambda a, b, allow_list_keys=False: ConfigDict(merge(yielding(b, a), a)))
    try:
        yield
    finally:
        Config._merge_a_into_b = staticmethod(original)


@contextmanager
def without_chatter() -> Iterator[None]:
    """Keeps to itself what mmengine logs while it reads a file, such as environment variables that it names."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


class RepeatedKey(ConfigError):
    """A key that one dict of a YAML or JSON file has twice, of which their readers keep the last without a word."""


class _PlainLoader(yaml.SafeLoader):
    """Makes plain values only, of keys that differ; of Python's own tags it knows tuples, which mmengine writes."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)  # before "<<" has put another mapping's keys into it
        lines: dict[str, int] = {}
        for key in [key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]:
            line = key.start_mark.line + 1
            if key.value in lines:
                raise RepeatedKey(f"the key {key.value!r} is in line {lines[key.value]} and again in line {line}")
            lines[key.value] = line
        return node


def _tuple(loader: _PlainLoader, node: yaml.SequenceNode) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node, deep=True))


_PlainLoader.add_constructor("tag:yaml.org,2002:python/tuple", _tuple)


@register_handler(["yaml", "yml"])
class PlainYamlHandler(YamlHandler):
    """mmengine's handler of YAML files, which executes nothing; mmengine's own calls whatever a file's tags name."""

    def load_from_fileobj(self, file: Any, **kwargs: Any) -> Any:
        found = yaml.load(file, _PlainLoader)
        if not isinstance(found, dict):
            raise yaml.YAMLError(f"its contents are {type(found).__name__}, not keys and values")
        return found


def _different(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    for key in found:
        if sum(other == key for other, _ in pairs) > 1:
            raise RepeatedKey(f"a dict has the key {key!r} twice")
    return found


@register_handler("json")
class PlainJsonHandler(JsonHandler):
    """mmengine's handler of JSON files, which takes no key twice."""

    def load_from_fileobj(self, file: Any) -> Any:
        return json.load(file, object_pairs_hook=_different)


def is_lazy(path: Path) -> bool:
    """Whether mmengine takes a Python config for one of its lazy configs, because it imports modules.

    It reads those in another way: what they import becomes part of the config. mmengine asks this of itself when it
    reads a file and does not say what it found; so we ask first, and refuse such files in one line.
    """
    return bool(Config._is_lazy_import(str(path)))


def base_circle(path: Path) -> list[Path] | None:
    """Config files that are each other's ``_base_``, from one of them back to it; None where there is no such circle.

    mmengine reads them again and again, until Python's stack is full. Which files a file names it tells in one private
    method only.
    """
    done: set[Path] = set()

    def follow(file: Path, way: list[Path]) -> list[Path] | None:
        if file in way:
            return [*way[way.index(file) :], file]
        if file in done or not file.is_file():
            return None
        for base in Config._get_base_files(str(file)):
            if (circle := follow((file.parent / base).resolve(), [*way, file])) is not None:
                return circle
        done.add(file)
        return None

    return follow(path.resolve(), [])
