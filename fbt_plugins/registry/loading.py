"""Finds plugins (built in, installed, or named in a config) and says whose fault a failure is."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from ..errors import FBTError, debugging, described, nearest, one_line, short
from . import hookspecs
from .registries import REGISTRIES, PluginFailure, PluginInfo, Registries, runs_later
from .rollback import Before
from .torch_defaults import TorchDefaults


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
            name, version = (getattr(dist, a, None) or "?" for a in ("name", "version"))
            self._load(PluginInfo(point.name, name, version, point.value), point.load)

    def load_module(self, name: str) -> None:
        """Loads a module by its import path, as a config's ``custom_imports`` does; its hook, if it has one, is called.

        Raises:
            FBTError: if it cannot be imported or its hook fails.
        """
        if any(info.module == name for info in self.loaded.values()):  # installed, and named in the config besides
            return
        self._load(PluginInfo(name, module=name), lambda: importlib.import_module(name), needs_hook=False)
        for failure in self.failures:
            if failure.plugin == name and not failure.distribution:
                raise FBTError(str(failure))

    def _load(self, plugin: PluginInfo, load: Callable[[], ModuleType], needs_hook: bool = True) -> None:
        other = self.loaded.get(plugin.name)
        known = [(f.plugin, f.distribution) for f in self.failures]
        if (other and other.distribution == plugin.distribution) or (plugin.name, plugin.distribution) in known:
            return
        before = Before(self.registries, plugin.module.partition(":")[0].partition(".")[0])
        defaults = TorchDefaults.now()
        try:
            if other:
                raise FBTError(f"its entry point has the name of {other}")
            module = load()
            if not isinstance(module, ModuleType):
                raise FBTError(f"its entry point must name a module, not {short(module)}")
            wanted = getattr(module, "FBT_API_VERSION", hookspecs.API_VERSION)
            if wanted != hookspecs.API_VERSION:
                raise ForeignVersionError(wanted)
            self._register(module, plugin.name, needs_hook, before)
            if changed := defaults.restore():
                self._manager.unregister(module)
                raise FBTError(f"it {changed}")
        except (Exception, SystemExit) as error:  # a plugin is anyone's code: whatever it raises is its own failure
            if debugging():
                traceback.print_exception(error)
            before.restore()
            defaults.restore()
            failure = (plugin.name, plugin.distribution, plugin.version, _what_and_where(error), remedy(plugin, error))
            self.failures.append(PluginFailure(*failure))
            return
        plugin = replace(plugin, module=module.__name__)
        before.claim(plugin)
        self.loaded[plugin.name] = plugin

    def _register(self, module: ModuleType, name: str, needs_hook: bool, before: Before) -> None:
        try:
            if self._manager.register(module, name) is None:
                raise FBTError("its name is blocked")
        except pluggy.PluginValidationError as error:
            raise FBTError("its fbt_register must take one argument, called registries") from error
        try:
            for caller in self._manager.get_hookcallers(module) or ():
                if not caller.has_spec():
                    raise FBTError(f"there is no hook {caller.name!r}{nearest(caller.name, ['fbt_register'])}")
            if callable(getattr(module, "fbt_register", None)) and not self._manager.get_hookcallers(module):
                raise FBTError("its fbt_register is not marked: write @hookimpl above it (from fbt_plugins)")
            others = [p for p in self._manager.get_plugins() if p is not module]
            hooks = [impl for impl in self._manager.hook.fbt_register.get_hookimpls() if impl.plugin is module]
            if any(map(runs_later, (impl.function for impl in hooks))):
                raise FBTError("its fbt_register must be a plain function, without async and yield: nothing would run")
            if hooks:
                self._manager.subset_hook_caller("fbt_register", others)(registries=self.registries)
            elif needs_hook:  # a module of a config may register mmengine's things, such as hooks, while it is imported
                raise FBTError("it has no hook: define fbt_register(registries) and mark it with fbt_plugins.hookimpl")
            before.refuse_replacements()
        except BaseException:
            self._manager.unregister(module)
            raise


class ForeignVersionError(FBTError):
    """A plugin was written for another version of the interface.

    Args:
        wanted: that version.
    """

    def __init__(self, wanted: Any) -> None:
        super().__init__(f"written for plugin interface {wanted}, this is {hookspecs.API_VERSION}")
        self.newer = isinstance(wanted, int) and wanted > hookspecs.API_VERSION


_OF_OTHERS = tuple(str(Path(module.__file__ or "").parent) for module in (pluggy, importlib))
"""Folders of those who call a plugin's code."""


def _what_and_where(error: BaseException) -> str:
    """A plugin's own exception with its type and the line of its code that raised it; ours say all in their line."""
    if isinstance(error, FBTError | ImportError | SyntaxError):
        return one_line(error)
    frames = [(f.filename, f.lineno) for f in traceback.extract_tb(error.__traceback__)]
    own = [(file, line) for file, line in frames if not (file == __file__ or file.startswith(("<", *_OF_OTHERS)))]
    return f"{described(error)} ({own[-1][0]}, line {own[-1][1]})" if own else described(error)


def remedy(plugin: PluginInfo, error: BaseException) -> str:
    """What a user can do about a plugin that failed to load."""
    ours = "upgrade fbt-plugins: pip install --upgrade fbt-plugins"
    if isinstance(error, ForeignVersionError) and error.newer:
        return f"{ours}, or remove the plugin: pip uninstall {plugin.distribution}" if plugin.distribution else ours
    if isinstance(error, ModuleNotFoundError) and error.name:
        missing = error.name.partition(".")[0]
        if missing != plugin.module.partition(".")[0].partition(":")[0]:
            return f"pip install {missing}, which {plugin.distribution or plugin.module} needs"
        if plugin.distribution:
            return f"its own module is not there: pip install --force-reinstall {plugin.distribution}"
        return "write the module's name as import does; it is looked for in the current folder and on PYTHONPATH"
    hint = "" if isinstance(error, FBTError) else "; FBT_DEBUG=1 shows the traceback"
    return plugin.way_out + hint


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
