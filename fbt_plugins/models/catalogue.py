"""What an architecture can build, for tables of all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Catalogue:
    """What an architecture can build; a builder may carry one as its attribute ``catalogue``.

    Attributes:
        names: every name that the builder knows.
        kind: the module and class of the network behind a name, "resnet/ResNet".
    """

    names: Callable[[], Iterable[str]]
    kind: Callable[[str], str]
