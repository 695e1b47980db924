"""Networks that answer with an object that has the logits, as those of transformers do, or with a map of features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def give_logits(net: nn.Module) -> nn.Module:
    """Lets a network answer with its logits, by a hook: a wrapper would change the names in its state dict."""
    net.register_forward_hook(logits_of)
    return net


def logits_of(net: nn.Module, args: Any, output: Any) -> Any:
    """What has ``logits``, as an attribute or a key, is replaced by them; anything else is left as it is."""
    if isinstance(output, Tensor) or hasattr(type(output), "__torch_function__"):  # or what stands for one in a trace
        return output
    if isinstance(output, Mapping) and "logits" in output:
        return output["logits"]
    return getattr(output, "logits", output)


def give_features(net: nn.Module) -> nn.Module:
    """Lets a network without a classifier answer with features (N, D), by a hook."""
    net.register_forward_hook(features_of)
    return net


def features_of(net: nn.Module, args: Any, output: Any) -> Any:
    """What an encoder gives as features (N, D): ``pooler_output`` where it has one, else the mean over all positions.

    Positions are those of ``last_hidden_state``, of tokens (N, L, D), or of a map, whose channels come last where its
    first two sizes alone are equal.
    """
    if not (isinstance(output, Tensor) or hasattr(type(output), "__torch_function__")):
        pooled = getattr(output, "pooler_output", None)
        output = getattr(output, "last_hidden_state", output) if pooled is None else pooled
        if not (isinstance(output, Tensor) or hasattr(type(output), "__torch_function__")):
            return output
    if output.ndim == 4:
        _, a, b, c = output.shape
        return output.mean((1, 2)) if a == b != c else output.mean((2, 3))
    return output.mean(1) if output.ndim == 3 else output
