"""Fusion strategies: how activations of one model become what a stage of another takes."""

from __future__ import annotations

from fbt_plugins import hookimpl
from fbt_plugins.registry import Registries

from .l2g import L2GFusion


@hookimpl
def fbt_register(registries: Registries) -> None:
    registries.fusions.register_module(module=L2GFusion)
