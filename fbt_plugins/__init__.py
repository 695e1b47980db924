"""FBT-plugins: cross-architecture knowledge distillation by fusing before transferring (FBT, arXiv 2410.12342)."""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "API_VERSION",
    "ARCHITECTURES",
    "FUSIONS",
    "LOSSES",
    "Batch",
    "ConfigError",
    "Declaration",
    "FBTError",
    "FromMap",
    "FusionStrategy",
    "Junction",
    "Knowledge",
    "PluginError",
    "Registries",
    "Splice",
    "StageSpec",
    "StagedModel",
    "ToMap",
    "UnknownNameError",
    "full_precision",
    "hookimpl",
    "isotropic",
    "load_plugins",
    "load_weights",
    "nearest",
]

if TYPE_CHECKING:
    from .public import *  # noqa: F403
else:

    def __getattr__(name):
        """Imports what is public when it is first used: pytest's plugin and --help need not wait for torch."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value = getattr(import_module(".public", __name__), name)
        return value
