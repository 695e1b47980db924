"""Architectures: how the models of timm are cut into stages, and the few small models that timm lacks."""

from __future__ import annotations

from fbt_plugins import Registries, hookimpl

from . import small_models  # registers its names with timm  # noqa: F401
from .module_models import build_module
from .timm_models import build_timm
from .torchvision_models import build_torchvision


@hookimpl
def fbt_register(registries: Registries) -> None:
    registries.architectures.register_module(name="timm", module=build_timm)
    registries.architectures.register_module(name="torchvision", module=build_torchvision)
    registries.architectures.register_module(name="module", module=build_module)
