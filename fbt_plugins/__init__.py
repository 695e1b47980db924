"""FBT-plugins: cross-architecture knowledge distillation by fusing before transferring (FBT, arXiv 2410.12342)."""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "API_VERSION": "registry.hookspecs",
    "ARCHITECTURES": "registry.registries",
    "FUSIONS": "registry.registries",
    "LOSSES": "registry.registries",
    "Batch": "models.knowledge",
    "ConfigError": "errors",
    "Declaration": "models.declaration",
    "Distiller": "distill.distiller",
    "FBTError": "errors",
    "FromMap": "models.maps",
    "FusionStrategy": "distill.fusion",
    "Junction": "distill.splice",
    "Knowledge": "models.knowledge",
    "PluginError": "errors",
    "Registries": "registry.registries",
    "Splice": "distill.splice",
    "StageSpec": "models.shapes",
    "StagedModel": "models.staged",
    "ToMap": "models.maps",
    "UnknownNameError": "errors",
    "distill": "engine.one_line",
    "full_precision": "distill.full_precision",
    "hookimpl": "registry.hookspecs",
    "isotropic": "models.declaration",
    "load_plugins": "registry.loading",
    "load_student": "engine.finished.student",
    "load_weights": "models.weights",
    "nearest": "errors",
}
"""The module of each public name, imported when the name is first used: ``--help`` need not wait for torch."""

__all__ = [*_HOMES]

if TYPE_CHECKING:
    from .distill.distiller import Distiller as Distiller
    from .distill.full_precision import full_precision as full_precision
    from .distill.fusion import FusionStrategy as FusionStrategy
    from .distill.splice import Junction as Junction
    from .distill.splice import Splice as Splice
    from .engine.finished.student import load_student as load_student
    from .engine.one_line import distill as distill
    from .errors import ConfigError as ConfigError
    from .errors import FBTError as FBTError
    from .errors import PluginError as PluginError
    from .errors import UnknownNameError as UnknownNameError
    from .errors import nearest as nearest
    from .models.declaration import Declaration as Declaration
    from .models.declaration import isotropic as isotropic
    from .models.knowledge import Batch as Batch
    from .models.knowledge import Knowledge as Knowledge
    from .models.maps import FromMap as FromMap
    from .models.maps import ToMap as ToMap
    from .models.shapes import StageSpec as StageSpec
    from .models.staged import StagedModel as StagedModel
    from .models.weights import load_weights as load_weights
    from .registry.hookspecs import API_VERSION as API_VERSION
    from .registry.hookspecs import hookimpl as hookimpl
    from .registry.loading import load_plugins as load_plugins
    from .registry.registries import ARCHITECTURES as ARCHITECTURES
    from .registry.registries import FUSIONS as FUSIONS
    from .registry.registries import LOSSES as LOSSES
    from .registry.registries import Registries as Registries


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    return globals().setdefault(name, value)  # "distill" is a room as well, which answers by that name and calls it
