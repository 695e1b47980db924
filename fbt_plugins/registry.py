"""The three registries: how models are cut, how two of them are spliced, and what is compared."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mmengine.registry import Registry

from .errors import ConfigError, FBTError, UnknownNameError, nearest


@dataclass(frozen=True)
class PluginFailure:
    """A plugin that could not be loaded.

    Attributes:
        plugin: name of the entry point, or of the module that a config imports.
        distribution: distribution that declares the entry point.
        version: version of that distribution.
        error: what went wrong, on one line.
    """

    plugin: str
    distribution: str
    version: str
    error: str

    def __str__(self) -> str:
        return f"plugin {self.plugin!r} ({self.distribution} {self.version}) failed to load: {self.error}"


class PluginRegistry(Registry):
    """An mmengine registry that answers unknown names with the nearest ones and never imports by dotted path.

    It has no parent and no children, so a ``type`` in a config reaches what plugins registered and nothing else.

    Attributes:
        owners: the plugin that registered each name.
        failures: plugins that failed to load; shown where a name is missed.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name, scope="fbt_plugins")
        self.owners: dict[str, str] = {}
        self.failures: list[PluginFailure] = []

    def get(self, key: str) -> Callable[..., Any]:
        """The class or function registered as ``key``.

        Raises:
            UnknownNameError: with the nearest names, and the plugins that failed to load.
        """
        if key in self._module_dict:
            return self._module_dict[key]
        message = f"{key!r} is not a registered {self.name}"
        if "." in str(key):
            message += " (dotted import paths are not accepted)"
        message += nearest(key, self._module_dict)
        if not self._module_dict and not self.failures:
            message += "; nothing is registered yet: call fbt_plugins.load_plugins() first"
        raise UnknownNameError("; ".join([message, *map(str, self.failures)]))

    def __contains__(self, key: object) -> bool:
        return key in self._module_dict

    def build(self, cfg: Mapping[str, Any], **context: Any) -> Any:
        """Builds what ``cfg["type"]`` names, with the rest of ``cfg`` and ``context`` as its arguments.

        Raises:
            UnknownNameError: if no plugin registered that name.
            ConfigError: if an argument is unknown or missing.
        """
        if not isinstance(cfg, Mapping) or not isinstance(cfg.get("type"), str):
            raise ConfigError(
                f"{self.name}: expected a dict with a 'type' (one of {', '.join(self._module_dict)}), got {cfg!r}"
            )
        arguments = {k: v for k, v in cfg.items() if k != "type"} | context
        factory = self.get(cfg["type"])
        problems = argument_problems(factory, arguments, cfg["type"])
        if problems:
            raise ConfigError(problems)
        try:
            return factory(**arguments)
        except FBTError:
            raise
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{cfg['type']}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """An exception's message on one line, with its type where the message alone says little."""
    text = " ".join(str(error).split())
    return text if isinstance(error, FBTError | ValueError) and text else f"{type(error).__name__}: {text}"


def argument_problems(factory: Callable[..., Any], arguments: Mapping[str, Any], where: str) -> list[str]:
    """Holds arguments against a signature without calling it.

    Args:
        factory: the class or function that would be called.
        arguments: its keyword arguments.
        where: what the lines begin with, a config key or a type.

    Returns:
        One line for each argument that is unknown or missing.
    """
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # built-in classes have no signature to hold anything against
        return []
    named = {n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    problems = []
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        problems += [f"{where}: no argument {a!r}{nearest(a, named, limit=12)}" for a in arguments if a not in named]
    problems += [line for a in arguments if a in named and (line := value_problem(where, named[a], arguments[a]))]
    missing = [n for n, p in named.items() if p.default is p.empty and n not in arguments]
    return problems + [f"{where}: argument {n!r} is missing" for n in missing]


LEAST = {
    **dict.fromkeys(("max_epochs", "max_iters", "val_interval", "interval", "batch_size", "input_size", "img_size"), 1),
    "num_workers": 0,
}
"""The smallest values of arguments that mean the same wherever they occur."""


def value_problem(where: str, parameter: inspect.Parameter, value: Any) -> str | None:
    """Holds a value against what its parameter's default or annotation says it is.

    Args:
        where: what the line begins with.
        parameter: of the function that would get it.
        value: the value.

    Returns:
        One line if a truth value or a number is expected and this is none, or if it is too small; else None.
    """
    default, name = parameter.default, parameter.name
    number = isinstance(value, int | float) and not isinstance(value, bool)
    expected = None
    if value is None or value is default:
        pass
    elif isinstance(default, bool):
        expected = None if isinstance(value, bool) else "True or False"
    elif parameter.annotation in (int, "int") and not (number and value == int(value)):
        expected = "a whole number"
    elif (isinstance(default, int | float) or parameter.annotation in (float, "float")) and isinstance(
        value, str | bool
    ):
        expected = "a number"
    elif name in LEAST and number and value < LEAST[name]:
        expected = f"{LEAST[name]} or more"
    return f"{where}: {name} must be {expected}, not {value!r}" if expected else None


@dataclass(frozen=True)
class Registries:
    """What a plugin's hook is handed: the registries it may add classes to."""

    architectures: PluginRegistry
    fusions: PluginRegistry
    losses: PluginRegistry

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter((self.architectures, self.fusions, self.losses))


ARCHITECTURES = PluginRegistry("architecture")
FUSIONS = PluginRegistry("fusion")
LOSSES = PluginRegistry("loss")
REGISTRIES = Registries(ARCHITECTURES, FUSIONS, LOSSES)
