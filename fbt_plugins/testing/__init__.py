"""Checks for authors of plugins: what a model, a fusion strategy or a loss must do, seen by doing it.

:mod:`.pytest_plugin` has them as fixtures. pytest imports that everywhere, so nothing is imported here before its use.
"""

from typing import TYPE_CHECKING

__all__ = ["check_architecture", "check_fusion", "check_loss", "isolated_plugins"]

if TYPE_CHECKING:
    from .checks import check_architecture, check_fusion, check_loss, isolated_plugins


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import checks

    return getattr(checks, name)
