# ruff: noqa: F401
"""Everything that ``from fbt_plugins import ...`` offers: the package imports this when a name is first used."""

from .declaration import Declaration, isotropic
from .errors import ConfigError, FBTError, PluginError, UnknownNameError, nearest
from .fusion import FusionStrategy
from .hookspecs import API_VERSION, hookimpl
from .knowledge import Batch, Knowledge
from .layout import FromMap, ToMap
from .plugins import load_plugins
from .precision import full_precision
from .registry import ARCHITECTURES, FUSIONS, LOSSES, Registries
from .splice import Junction, Splice
from .staged import StagedModel, StageSpec
from .weights import load_weights
