"""FBT-plugins: cross-architecture knowledge distillation by fusing before transferring (FBT, arXiv 2410.12342)."""

from .errors import ConfigError, FBTError, UnknownNameError
from .hookspecs import API_VERSION, hookimpl
from .knowledge import Batch, Knowledge
from .plugins import load_plugins
from .registry import ARCHITECTURES, FUSIONS, LOSSES

__version__ = "0.1.0"

__all__ = [
    "API_VERSION",
    "ARCHITECTURES",
    "FUSIONS",
    "LOSSES",
    "Batch",
    "ConfigError",
    "FBTError",
    "Knowledge",
    "UnknownNameError",
    "hookimpl",
    "load_plugins",
]
