"""How one config is laid over another: inherited siblings are dropped where a ``type`` or a ``name`` changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.config.config import DELETE_KEY

from ..errors import ConfigError, nearest

IDENTITY = ("type", "name")
"""Keys that say what a dict describes; where one changes, the arguments of the old one are dropped."""


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
    # Options that change a type or name come first, in whatever order they were typed: they drop other arguments.
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
