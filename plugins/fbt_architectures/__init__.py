"""Architectures: how the models of timm are cut into stages, and the few small models that timm lacks."""

from __future__ import annotations

from fbt_plugins import hookimpl
from fbt_plugins.registry import Registries

from . import small_models  # registers its names with timm  # noqa: F401
from .timm_models import build_timm


@hookimpl
def fbt_register(registries: Registries) -> None:
    registries.architectures.register_module(name="timm", module=build_timm)
