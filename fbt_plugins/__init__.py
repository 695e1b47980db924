"""FBT-plugins: cross-architecture knowledge distillation by fusing before transferring (FBT, arXiv 2410.12342)."""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .public import *  # noqa: F403
else:

    def __getattr__(name):
        """Imports what is public when it is first used: pytest's plugin and --help need not wait for torch."""
        if name.startswith("__") and name != "__all__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        public = import_module(".public", __name__)
        if name != "__all__" and name not in public.__all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value = getattr(public, name)
        return value
