"""What a network runs under ``torch.autocast`` or ``torch.no_grad`` of its own: a trace would leave these out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Region(NamedTuple):
    """One ``torch.autocast``.

    Attributes:
        device: type of the device; None is that of the tensors, since a network may move.
        dtype: that operators compute in.
        enabled: whether they do.
        cache: whether weights are cast once only.
    """

    device: str | None
    dtype: torch.dtype
    enabled: bool
    cache: bool


class NoGrad(NamedTuple):
    """What runs without gradients."""


Regions = tuple["Region | NoGrad", ...]


class AutocastRegions:
    """The regions of autocast that the running code is in; ``now`` lists them from the outside in.

    Args:
        device: type of the device that the network is on.
    """

    def __init__(self, device: str) -> None:
        self.device, self.now = device, tuple[Region, ...]()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within it, ``now`` is up to date."""
        enter, leave = torch.autocast.__enter__, torch.autocast.__exit__

        def entered(autocast: Any) -> Any:
            device = None if autocast.device == self.device else autocast.device  # it may be x.device.type
            region = Region(device, autocast.fast_dtype, autocast._enabled, autocast._cache_enabled)
            self.now = (*self.now, region)
            return enter(autocast)

        def left(autocast: Any, *error: Any) -> Any:
            self.now = self.now[:-1]
            return leave(autocast, *error)

        torch.autocast.__enter__, torch.autocast.__exit__ = entered, left  # type: ignore[method-assign]
        try:
            yield
        finally:
            torch.autocast.__enter__, torch.autocast.__exit__ = enter, leave  # type: ignore[method-assign]


@cache
def within(regions: Regions, function: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """A function that runs another one in these regions.

    Its name says all that it does, for code is compared as text.

    Args:
        regions: from the outside in.
        function: what it runs; None is its own first argument, a function, or the name of a method of the second.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        called, *rest = args if function is None else (function, *args)
        own = next((a.device.type for a in (*rest, *kwargs.values()) if isinstance(a, Tensor)), "cpu")
        with ExitStack() as stack:
            for region in regions:
                stack.enter_context(_entered(region, own))
            return getattr(rest[0], called)(*rest[1:], **kwargs) if isinstance(called, str) else called(*rest, **kwargs)

    words = ["no_grad" if isinstance(r, NoGrad) else "_".join(map(str, r)) for r in regions]
    if function is not None:
        words += [getattr(function, "__module__", None) or "", getattr(function, "__qualname__", repr(function))]
    run.__qualname__ = run.__name__ = re.sub(r"\W+", "_", f"within_{'__'.join(words)}")
    return run


def _entered(region: Region | NoGrad, own: str) -> Any:
    if isinstance(region, NoGrad):
        return torch.no_grad()
    return torch.autocast(region.device or own, region.dtype, region.enabled, region.cache)
