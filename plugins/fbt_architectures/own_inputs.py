"""What every builder does with a checkpoint and a model's own input: its weights, its normalisation, its size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fbt_plugins.weights import load_weights


def load_and_read(
    net: nn.Module,
    name: str,
    checkpoint: str | None,
    input_size: int | Sequence[int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    own: dict[str, Sequence[float]],
) -> dict[str, Any]:
    """Loads a checkpoint, and settles the input: what the config says, else the checkpoint, else the model's library.

    Args:
        net: the network, changed in place.
        name: what messages call it.
        checkpoint: file with weights, or "embedded:NAME"; None leaves the network as it is.
        input_size, mean, std: what the config says.
        own: "mean" and "std" of the library.

    Returns:
        ``input_size``, ``mean`` and ``std`` as :class:`StagedModel` takes them.

    Raises:
        FBTError: if the weights cannot be read, or do not fit.
    """
    told = load_weights(net, checkpoint, name) if checkpoint else {}
    size = input_size or told.get("input_size")
    return {
        "input_size": (size, size) if isinstance(size, int) else size and tuple(size),
        "mean": mean or told.get("mean") or own["mean"],
        "std": std or told.get("std") or own["std"],
    }
