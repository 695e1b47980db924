"""The three registries: how models are cut, how two of them are spliced, and what is compared."""

from __future__ import annotations

import functools
import inspect
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.registry import Registry

from ..errors import (
    ConfigError,
    FBTError,
    PartError,
    PluginError,
    TakenNameError,
    UnknownNameError,
    described,
    nearest,
    one_line,
    short,
)
from .signatures import argument_problems
from .torch_defaults import TorchDefaults


def _is_class_or_function(module: object) -> bool:
    """Whether it is what one may register: an instance would be shared by all configs that name it."""
    while isinstance(module, functools.partial):
        module = module.func
    plain = inspect.unwrap(module) if callable(module) else module  # of a cache, for example
    return inspect.isclass(plain) or inspect.isroutine(plain)


def runs_later(function: object) -> bool:
    """Whether a call of it runs nothing yet, but makes a generator or a coroutine."""
    while isinstance(function, functools.partial):
        function = function.func
    kinds = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    return any(kind(function) for kind in kinds)


@dataclass(frozen=True)
class PluginInfo:
    """A plugin: whose it is, and where its code is.

    Attributes:
        name: of the entry point, or of the module that a config imports.
        distribution: that declares the entry point; empty where a config imports the module.
        version: of that distribution.
        module: that the entry point names.
    """

    name: str
    distribution: str = ""
    version: str = ""
    module: str = ""

    def __str__(self) -> str:
        whose = f"{self.distribution} {self.version}" if self.distribution else "a module named in the config"
        return f"plugin {self.name!r} ({whose})"

    @property
    def way_out(self) -> str:
        """What a user can do who cannot mend the plugin."""
        if not self.distribution:
            return f"mend {self.module}, or drop it from custom_imports"
        if self.distribution == "fbt-plugins":
            return "please tell us, with the traceback that FBT_DEBUG=1 shows"
        return f"upgrade it, or remove it: pip uninstall {self.distribution}"


@dataclass(frozen=True)
class PluginFailure:
    """A plugin that could not be loaded.

    Attributes:
        plugin: name of the entry point, or of the module that a config imports.
        distribution: distribution that declares the entry point.
        version: version of that distribution.
        error: what went wrong, on one line.
        remedy: what a user can do.
    """

    plugin: str
    distribution: str
    version: str
    error: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{PluginInfo(self.plugin, self.distribution, self.version)} failed to load: {self.error}"
        return f"{line}; {self.remedy}" if self.remedy else line


@dataclass(frozen=True)
class Snapshot:
    """What a registry held at some time.

    Attributes:
        modules: classes and functions by name.
        owners: the plugin that registered each name.
    """

    modules: Mapping[str, Any]
    owners: Mapping[str, PluginInfo]


class PluginRegistry(Registry):
    """An mmengine registry that answers unknown names with the nearest ones and never imports by dotted path.

    It has no parent and no children, so a ``type`` in a config reaches what plugins registered and nothing else.

    Args:
        name: what it holds, in the singular.
        makes: what its classes and functions return, in words.
        members: what such an object must have; anything else is refused in the name of the plugin.

    Attributes:
        owners: the plugin that registered each name.
        failures: plugins that failed to load; shown where a name is missed.
    """

    def __init__(self, name: str, makes: str = "an object", members: Sequence[str] = ()) -> None:
        super().__init__(name, scope="fbt_plugins")
        self.makes, self.members = makes, tuple(members)
        self.owners: dict[str, PluginInfo] = {}
        self.failures: list[PluginFailure] = []

    def register_module(self, name: str | list[str] | None = None, force: bool = False, module: Any = None) -> Any:
        """Registers a class or a function, as a call (``module=...``) or as a decorator.

        Args:
            name: one or several; by default the module's own.
            force: whether it may replace what has such a name.
            module: the class or function.

        Raises:
            TakenNameError: for the name of something else.
            FBTError: for what is no class, function or name.
        """
        if module is None:
            return lambda decorated: self.register_module(name, force, decorated)
        for one in name if isinstance(name, list) else [name or getattr(module, "__name__", "")]:
            if not _is_class_or_function(module) or not isinstance(one, str) or not one:
                what = f"{short(module)} under {one!r}" if one else f"{short(module)} without a name"
                raise FBTError(f"a {self.name} is a class or a function under a name, not {what}")
            if runs_later(module):
                raise FBTError(
                    f"{one!r} must be a class or a plain function that returns {self.makes}, without async and yield"
                )
            if one in self and not force:
                owner = self.owners.get(one)
                whose = f"of {owner}" if owner else "that is registered already"
                raise TakenNameError(f"{one!r} is the name of a {self.name} {whose}; register another name")
        return super().register_module(name, force, module)

    def snapshot(self) -> Snapshot:
        """What is registered now."""
        return Snapshot(dict(self.module_dict), dict(self.owners))

    def restore(self, snapshot: Snapshot) -> None:
        """Makes it hold what it held when the snapshot was taken, and nothing else."""
        self.module_dict.clear()
        self.module_dict.update(snapshot.modules)
        self.owners = dict(snapshot.owners)

    def get(self, key: str) -> Callable[..., Any]:
        """The class or function registered as ``key``.

        Raises:
            UnknownNameError: with the nearest names, and the plugins that failed to load.
        """
        if key in self:
            return self.module_dict[key]
        message = f"{key!r} is not a registered {self.name}"
        if "." in str(key):
            message += " (dotted import paths are not accepted)"
        message += nearest(key, self.module_dict)
        if not self.module_dict and not self.failures:
            message += "; nothing is registered yet: call fbt_plugins.load_plugins() first"
        raise UnknownNameError("; ".join([message, *map(str, self.failures)]))

    def __contains__(self, key: object) -> bool:
        return key in self.module_dict

    def build(self, cfg: Mapping[str, Any], *, also: Iterable[str] = (), **context: Any) -> Any:
        """Builds what ``cfg["type"]`` names, with the rest of ``cfg`` and ``context`` as its arguments.

        Args:
            cfg: with a ``type``.
            also: keys that such a config may have besides, and that the caller has taken out; a typo may mean one.
            context: further arguments.

        Raises:
            UnknownNameError: if no plugin registered that name.
            ConfigError: if an argument is unknown or missing.
        """
        if not isinstance(cfg, Mapping) or not isinstance(cfg.get("type"), str):
            raise ConfigError(
                f"{self.name}: expected a dict with a 'type' (one of {', '.join(self.module_dict)}), got {cfg!r}"
            )
        arguments = {k: v for k, v in cfg.items() if k != "type"} | context
        factory = self.get(cfg["type"])
        problems = argument_problems(factory, arguments, cfg["type"], also)
        if problems:
            raise ConfigError(problems)
        with self.blame(cfg["type"]):
            try:
                built = factory(**arguments)
            except ValueError as error:  # how a class says that it is given a wrong value
                raise ConfigError(f"{cfg['type']}: {one_line(error)}") from error
            except TypeError as error:
                owner = self.owners.get(cfg["type"])
                whose = f"; check its arguments; if they are right, the fault is in {owner}" if owner else ""
                raise ConfigError(f"{cfg['type']}: {one_line(error)}{whose}") from error
            if lacking := [m for m in self.members if not hasattr(built, m)]:
                what = f"made {short(built)}, which has no {lacking[0]!r}: it must be {self.makes}"
                raise self.fault(cfg["type"], what)
        return built

    def fault(self, key: str, what: str) -> PluginError:
        """The error that names the plugin behind a registered name.

        Args:
            key: the name.
            what: what it did, as the rest of a sentence.
        """
        owner = self.owners.get(key)
        if owner is None:  # registered by a script or a test, not by a plugin
            return PluginError(f"{self.name} {key!r} {what}")
        return PluginError(f"{self.name} {key!r} of {owner} {what}; {owner.way_out}")

    @contextmanager
    def blame(self, key: str) -> Iterator[None]:
        """Names the plugin that registered ``key`` for what its code raises, unless that says what the user got wrong.

        What that code changes of torch's defaults is undone.

        Raises:
            PluginError: in the place of any exception but a :class:`FBTError`, and those of a machine (files, memory);
                and for changed defaults.
        """
        defaults = TorchDefaults.now()
        try:
            try:
                yield
            finally:
                changed = defaults.restore()
        except PartError as error:
            raise self.fault(key, error.what) from error
        except (FBTError, OSError, MemoryError):
            raise
        except (Exception, SystemExit) as error:  # a plugin is anyone's code
            raise self.raised(key, error) from error
        if changed:
            raise self.fault(key, changed)

    def raised(self, key: str, error: BaseException) -> PluginError:
        """The error that says what a registered name's code raised, and where in that code."""
        module = self.owners[key].module if key in self.owners else ""
        return self.fault(key, f"raised {described(error)}{_place(error, module.partition('.')[0])}")


def _place(error: BaseException, package: str) -> str:
    """Where in a package an exception came from: the innermost of its own lines."""
    frames = traceback.walk_tb(error.__traceback__)
    own = [(f, n) for f, n in frames if package and f.f_globals.get("__name__", "").partition(".")[0] == package]
    if not own:
        return ""
    frame, line = own[-1]
    return f" in {frame.f_code.co_qualname} ({Path(frame.f_code.co_filename).name}:{line})"


@dataclass(frozen=True)
class Registries:
    """What a plugin's hook is handed: the registries it may add classes to."""

    architectures: PluginRegistry
    fusions: PluginRegistry
    losses: PluginRegistry

    @classmethod
    def empty(cls) -> Registries:
        """Registries that hold nothing yet."""
        return cls(
            PluginRegistry("architecture", "a fbt_plugins.StagedModel", ("stages", "head", "specs_at", "knowledge")),
            PluginRegistry("fusion", "an object with build(student_specs, teacher_specs, splice)", ("build",)),
            PluginRegistry("loss", "a torch.nn.Module", ("forward", "named_parameters")),
        )

    def __iter__(self) -> Iterator[PluginRegistry]:
        return iter((self.architectures, self.fusions, self.losses))


REGISTRIES = Registries.empty()
ARCHITECTURES, FUSIONS, LOSSES = REGISTRIES
