"""Whose fault it is: what is raised inside a plugin's model, junction or loss comes in the plugin's name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from ..errors import ConfigError, one_line
from ..registry.registries import LOSSES, PluginRegistry


def blaming(registry: PluginRegistry, kind: str) -> AbstractContextManager[None]:
    """Stands around a call of a plugin's code.

    Args:
        registry: that the code is from.
        kind: the name that it is registered under; "" where it is not from a registry, and nobody is blamed.

    Returns:
        A context that raises the :class:`PluginError` of :meth:`PluginRegistry.blame`. While torch.compile traces the
        code it does nothing: a compiled graph has no such contexts.
    """
    if not kind or torch.compiler.is_compiling():
        return nullcontext()
    return registry.blame(kind)


@contextmanager
def _blaming_loss(kind: str, name: str) -> Iterator[None]:
    with LOSSES.blame(kind):
        try:
            yield
        except ValueError as error:
            raise ConfigError(f"{kind} ({name}): {one_line(error)}") from error


def blaming_loss(kind: str, name: str) -> AbstractContextManager[None]:
    """The same around a loss, whose ValueError is for the user: that is how a loss says that it lacks something.

    Args:
        kind: the name that it is registered under.
        name: of its value: "task", or "edge/slot".
    """
    return nullcontext() if torch.compiler.is_compiling() else _blaming_loss(kind, name)
