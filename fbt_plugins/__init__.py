"""FBT-plugins: cross-architecture knowledge distillation by fusing before transferring (FBT, arXiv 2410.12342)."""

from .declaration import Declaration, isotropic
from .errors import ConfigError, FBTError, UnknownNameError, nearest
from .fusion import FusionStrategy
from .hookspecs import API_VERSION, hookimpl
from .knowledge import Batch, Knowledge
from .plugins import load_plugins
from .registry import ARCHITECTURES, FUSIONS, LOSSES, Registries
from .splice import Junction, Splice
from .staged import StagedModel, StageSpec
from .weights import load_weights

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
    "FusionStrategy",
    "Junction",
    "Knowledge",
    "Registries",
    "Splice",
    "StageSpec",
    "StagedModel",
    "UnknownNameError",
    "hookimpl",
    "isotropic",
    "load_plugins",
    "load_weights",
    "nearest",
]
