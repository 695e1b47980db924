"""What a plugin's parts must do, checked. Each check raises an AssertionError of one line that says what is wrong.

The pytest plugin that comes with us offers them as fixtures of the same names.
"""

from __future__ import annotations

from ..registry.loading import Plugins
from ..registry.registries import Registries
from .architectures import check_architecture
from .fusions import check_fusion
from .losses import check_loss
from .samples import EXTRA, MODELS, SPLICES

__all__ = ["EXTRA", "MODELS", "SPLICES", "check_architecture", "check_fusion", "check_loss", "isolated_plugins"]


def isolated_plugins() -> Plugins:
    """A plugin manager with registries of its own that hold nothing yet, whatever is installed."""
    return Plugins(Registries.empty())
