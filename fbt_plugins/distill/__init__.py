"""What models teach each other: splices, fusion models, edges, and the distiller that has them all.

``fbt_plugins.distill(data=..., teacher=..., student=..., out=...)`` is a whole run in one line: the room can be called.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    """A module that can be called. The function lies in a room above, so it is looked up by its public name."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        root = __name__.partition(".")[0]
        home = import_module(root)._HOMES["distill"]
        return import_module(f".{home}", root).distill(*args, **options)


sys.modules[__name__].__class__ = _Room
