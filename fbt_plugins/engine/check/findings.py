"""What checkers find wrong with a config, and how they hold a part of it against what will be built of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.registry import Registry

from ...errors import FBTError, nearest, one_line
from ...registry.registries import PluginRegistry
from ...registry.signatures import parameters_of, value_problem


class Findings:
    """A config, and what is wrong with it; nothing that takes time or data is built.

    Args:
        config: as :func:`load_config` gives it.

    Attributes:
        config: its contents.
        problems: one line each.
        wrong_options: keys of ``OPTIONS`` of whose values nothing can be made.
    """

    def __init__(self, config: Config) -> None:
        self.config: dict[str, Any] = config.to_dict()
        self.problems: list[str] = []
        self.wrong_options: set[str] = set()
        self._source = f"{config.filename}: " if config.filename else ""

    def lines(self) -> list[str]:
        """The problems, each once and with the config's file before it."""
        return [f"{self._source}{line}" for line in dict.fromkeys(self.problems)]

    def typed(
        self, registry: Registry, config: Any, where: str, given: Iterable[str] = (), extra: Iterable[str] = ()
    ) -> None:
        """A dict with a ``type`` (or a list of them) against the signature of what the registry has for it."""
        if isinstance(config, list | tuple):
            for i, item in enumerate(config):
                self.typed(registry, item, f"{where}.{i}", given, extra)
            return
        if config is None:
            return
        if not isinstance(config, Mapping) or not isinstance(config.get("type"), str):
            self.problems.append(f"{where}: expected a dict with a 'type', got {config!r}")
            return
        name = config["type"]
        if isinstance(registry, PluginRegistry):
            factory = self.collect(where, registry.get, name)
        else:
            registry.import_from_location()
            factory = registry.module_dict.get(name)
            if factory is None:
                dotted = " (dotted import paths are not accepted)" if "." in name else ""
                self.problems.append(
                    f"{where}.type: no {registry.name} {name!r}{dotted}{nearest(name, registry.module_dict)}"
                )
        if factory is not None:
            self.signature(factory, {k: v for k, v in config.items() if k != "type"}, where, given, extra)

    def signature(
        self,
        factory: Callable[..., Any],
        options: Any,
        where: str,
        given: Iterable[str] = (),
        extra: Iterable[str] = (),
    ) -> None:
        """Options against a signature.

        Args:
            factory: what would be called.
            options: its arguments by name.
            where: what the lines begin with.
            given: arguments that the run gives it, which no config may.
            extra: keys that are for somebody else.
        """
        if not isinstance(options, Mapping):
            self.problems.append(f"{where}: expected a dict, got {options!r}")
            return
        accepted, complete = parameters_of(factory, follow=True)
        if complete:
            self.known_keys(options, [*(a for a in accepted if a not in given), *extra], where)
        for name, parameter in accepted.items():
            if name in options:
                if problem := value_problem(where, parameter, options[name]):
                    self.problems.append(problem)
            elif parameter.default is parameter.empty and name not in given:
                self.problems.append(f"{where}: {name!r} is missing")

    def built(self, factory: Callable[..., Any], options: Any, where: str) -> Any:
        """What is made of options, by something that checks their values itself; None where they are wrong."""
        before = len(self.problems)
        self.signature(factory, options, where)
        try:
            return self.collect("", lambda: factory(**options)) if len(self.problems) == before else None
        except (TypeError, ValueError) as error:  # a value of quite another kind
            self.problems.append(f"{where}: {one_line(error)}")
        return None

    def known_keys(self, options: Mapping[str, Any], known: Iterable[str], where: str) -> None:
        """A dict's keys against those that it may have."""
        names = list(known)
        for key in options:
            if key not in names:
                self.problems.append(f"{where}: unknown key {key!r}{nearest(key, names, limit=12)}")

    def collect(self, where: str, function: Callable[..., Any], *args: Any) -> Any:
        """What a function returns; None where it has something to say, which is a problem at ``where``."""
        try:
            return function(*args)
        except FBTError as error:
            self.problems += [f"{where}: {line}" if where else line for line in str(error).splitlines()]
        return None
