"""The one hook of a plugin."""

from __future__ import annotations

import pluggy

from .registries import Registries

GROUP = "fbt_plugins"
"""Entry-point group in which a distribution names its plugin module, and the project name of the hooks."""

API_VERSION = 1
"""Version of the interface. A plugin module may set ``FBT_API_VERSION``; one written for another version is refused."""

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@hookspec
def fbt_register(registries: Registries) -> None:
    """Registers a plugin's classes, all of them or none.

    Called once, with the registries as attributes::

        @fbt_plugins.hookimpl
        def fbt_register(registries):
            registries.losses.register_module(module=MyLoss)
    """
