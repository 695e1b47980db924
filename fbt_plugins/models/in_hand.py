"""A network that is there already, as stages and a head: the architectures are asked whose it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import ConfigError, PartError
from ..registry.loading import load_plugins
from ..registry.registries import ARCHITECTURES
from ..registry.signatures import argument_problems


@dataclass(frozen=True)
class InHand:
    """How an architecture cuts a network that is built already; its builder may carry one as ``in_hand``.

    Attributes:
        cut: (net, image_size=None, **options) -> the :class:`StagedModel`. ``image_size`` is the size of the images
            where the network has none of its own. It leaves the network as it is.
        recognises: whether a network is this architecture's; None takes any, and is asked last.
    """

    cut: Callable[..., Any]
    recognises: Callable[[nn.Module], bool] | None = None


def cut_in_hand(net: nn.Module, options: dict[str, Any]) -> Any:
    """The :class:`StagedModel` of a network, cut by the first architecture that recognises it.

    Raises:
        ConfigError: if no architecture takes it, or the one that does has no such option.
    """
    load_plugins()
    known = {name: getattr(build, "in_hand", None) for name, build in ARCHITECTURES.module_dict.items()}
    asked = [(name, ways) for name, ways in known.items() if isinstance(ways, InHand)]
    for name, ways in sorted(asked, key=lambda item: item[1].recognises is None):
        with ARCHITECTURES.blame(name):
            if ways.recognises is not None and not ways.recognises(net):
                continue
            if problems := argument_problems(ways.cut, {"net": net, **options}, f"{type(net).__name__} ({name})"):
                raise ConfigError(problems)
            try:
                return ways.cut(net, **options)
            except (PartError, ValueError) as error:  # the network and the options are the user's, not the plugin's
                raise ConfigError(str(error)) from error
    failed = "".join(f"; {failure}" for failure in ARCHITECTURES.failures)
    raise ConfigError(f"no architecture takes a {type(net).__name__} that is built already{failed}")
