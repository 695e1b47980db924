"""What is registered before a plugin is loaded, so that one that fails leaves nothing, and none replaces anything."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import mmengine.registry
from mmengine.registry import Registry

from ..errors import TakenNameError
from .registries import PluginInfo, PluginRegistry

MMENGINE = tuple(value for value in vars(mmengine.registry).values() if isinstance(value, Registry))
"""Registries of data sets, hooks, metrics, samplers and so on, which plugins fill while they are imported."""


class Before:
    """Everything that is registered at some time.

    Args:
        registries: ours.
        package: the top-level package of the plugin that is loaded next: in mmengine's registries only what is from
            there counts, for its imports may be the first of somebody else's module.
    """

    def __init__(self, registries: Iterable[PluginRegistry], package: str) -> None:
        self._package = package
        self._ours = [(registry, registry.snapshot()) for registry in registries]
        self._others = [(registry, dict(registry.module_dict)) for registry in MMENGINE]

    def restore(self) -> None:
        """Takes back what was registered since."""
        for registry, snapshot in self._ours:
            registry.restore(snapshot)
        for other, modules in self._others:
            for name in [name for name, module in other.module_dict.items() if self._is_new(modules, name, module)]:
                if name in modules:
                    other.module_dict[name] = modules[name]
                else:
                    del other.module_dict[name]

    def refuse_replacements(self) -> None:
        """A plugin may use ``force=True`` for its own names only.

        Raises:
            TakenNameError: if a name that was there now means something else.
        """
        for registry, snapshot in self._ours:
            for name, module in snapshot.modules.items():
                if registry.module_dict.get(name) is not module:
                    owner = snapshot.owners.get(name)
                    whose = f" of {owner}" if owner else ""
                    raise TakenNameError(f"it replaces the {registry.name} {name!r}{whose}; register another name")
        for other, modules in self._others:
            for name, module in other.module_dict.items():
                if name in modules and self._is_new(modules, name, module):
                    home = modules[name].__module__
                    raise TakenNameError(f"it replaces the {other.name} {name!r} of {home}; register another name")

    def claim(self, plugin: PluginInfo) -> None:
        """Notes that what was registered since is a plugin's."""
        for registry, snapshot in self._ours:
            registry.owners |= dict.fromkeys(registry.module_dict.keys() - snapshot.modules.keys(), plugin)

    def _is_new(self, modules: dict[str, Any], name: str, module: Any) -> bool:
        package = str(getattr(module, "__module__", "")).partition(".")[0]
        return modules.get(name) is not module and package == self._package
