"""FBT-plugins: cross-architecture knowledge distillation by fusing before transferring (FBT, arXiv 2410.12342)."""

from .declaration import Declaration
from .errors import ConfigError, FBTError, UnknownNameError
from .fusion import FusionStrategy
from .hookspecs import API_VERSION, hookimpl
from .knowledge import Batch, Knowledge
from .plugins import load_plugins
from .registry import ARCHITECTURES, FUSIONS, LOSSES
from .splice import Junction, Splice
from .staged import StagedModel, StageSpec

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
    "Splice",
    "StageSpec",
    "StagedModel",
    "UnknownNameError",
    "hookimpl",
    "load_plugins",
]
