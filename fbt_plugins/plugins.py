"""Finds plugins (built in, installed, or named in a config) and says whose fault a failure is."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

import pluggy

from . import hookspecs
from .errors import FBTError
from .registry import REGISTRIES, PluginFailure, Registries, one_line


@dataclass(frozen=True)
class PluginInfo:
    """A plugin that was loaded, and what it offers."""

    name: str
    distribution: str
    version: str
    module: str


class Plugins:
    """Loads plugins into a set of registries. The process has one, behind :func:`load_plugins`; tests make their own.

    Attributes:
        loaded: plugins that registered what they offer, by name.
        failures: plugins that did not, in the order they were met.
    """

    def __init__(self, registries: Registries = REGISTRIES) -> None:
        self.registries = registries
        self.loaded: dict[str, PluginInfo] = {}
        self.failures: list[PluginFailure] = []
        self._manager = pluggy.PluginManager(hookspecs.GROUP)
        self._manager.add_hookspecs(hookspecs)
        for registry in registries:
            registry.failures = self.failures

    def load_installed(self, found: Iterable[EntryPoint] | None = None) -> None:
        """Loads each entry point of the group ``fbt_plugins`` that is not loaded yet; a failure stops no other."""
        for point in entry_points(group=hookspecs.GROUP) if found is None else found:
            dist = point.dist
            self._load(point.name, dist.name if dist else "?", dist.version if dist else "?", point.load)

    def load_module(self, name: str) -> None:
        """Loads a module by its import path, as a config's ``custom_imports`` does; its hook, if it has one, is called.

        Raises:
            FBTError: if it cannot be imported or its hook fails.
        """
        self._load(name, "module named in the config", "-", lambda: importlib.import_module(name), needs_hook=False)
        for failure in self.failures:
            if failure.plugin == name:
                raise FBTError(str(failure))

    def _load(
        self, name: str, distribution: str, version: str, load: Callable[[], ModuleType], needs_hook: bool = True
    ) -> None:
        if name in self.loaded or any((f.plugin, f.distribution) == (name, distribution) for f in self.failures):
            return
        before = [(dict(r._module_dict), dict(r.owners)) for r in self.registries]
        try:
            module = load()
            wanted = getattr(module, "FBT_API_VERSION", hookspecs.API_VERSION)
            if wanted != hookspecs.API_VERSION:
                raise FBTError(f"written for plugin interface {wanted}, this is {hookspecs.API_VERSION}")
            self._register(module, name, needs_hook)
        except (Exception, SystemExit) as error:  # a plugin is anyone's code: whatever it raises is its own failure
            for registry, (modules, owners) in zip(self.registries, before, strict=True):
                registry._module_dict, registry.owners = modules, owners
            self.failures.append(PluginFailure(name, distribution, version, one_line(error)))
            return
        for registry, (modules, _) in zip(self.registries, before, strict=True):
            registry.owners |= dict.fromkeys(registry._module_dict.keys() - modules.keys(), name)
        self.loaded[name] = PluginInfo(name, distribution, version, getattr(module, "__name__", str(module)))

    def _register(self, module: ModuleType, name: str, needs_hook: bool) -> None:
        if self._manager.register(module, name) is None:
            raise FBTError("its name is blocked")
        try:
            others = [p for p in self._manager.get_plugins() if p is not module]
            if not any(impl.plugin is module for impl in self._manager.hook.fbt_register.get_hookimpls()):
                if not needs_hook:  # it may register mmengine's things, such as hooks, while it is imported
                    return
                raise FBTError("it has no hook: define fbt_register(registries) and mark it with fbt_plugins.hookimpl")
            self._manager.subset_hook_caller("fbt_register", others)(registries=self.registries)
        except BaseException:
            self._manager.unregister(module)
            raise


_PLUGINS: Plugins | None = None


def load_plugins() -> Plugins:
    """Loads every installed plugin, once; calling it again costs nothing.

    Returns:
        The process's plugins: what is loaded and what failed.
    """
    global _PLUGINS
    if _PLUGINS is None:
        _PLUGINS = Plugins()
        _PLUGINS.load_installed()
    return _PLUGINS
