"""Everything that ``from fbt_plugins import ...`` offers; the package imports this module when a name is first used."""

from .declaration import Declaration
from .errors import ConfigError, FBTError, PluginError, UnknownNameError
from .fusion import FusionStrategy
from .hookspecs import API_VERSION, hookimpl
from .knowledge import Batch, Knowledge
from .plugins import load_plugins
from .precision import full_precision
from .registry import ARCHITECTURES, FUSIONS, LOSSES, Registries
from .splice import Junction, Splice
from .staged import StagedModel, StageSpec
from .weights import load_weights

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
    "PluginError",
    "Registries",
    "Splice",
    "StageSpec",
    "StagedModel",
    "UnknownNameError",
    "full_precision",
    "hookimpl",
    "load_plugins",
    "load_weights",
]
