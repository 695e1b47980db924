"""What every builder does with a checkpoint and a model's own input: its weights, its normalisation, its size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from fbt_plugins.staged import pixels
from fbt_plugins.weights import load_weights


def load_and_read(
    net: nn.Module,
    name: str,
    checkpoint: str | None,
    input_size: int | Sequence[int] | None,
    mean: float | Sequence[float] | None,
    std: float | Sequence[float] | None,
    own: Mapping[str, float | Sequence[float]],
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
    settled = {"input_size": None, "mean": own["mean"], "std": own["std"]}
    said = {"input_size": None if input_size is None else pixels(input_size), "mean": mean, "std": std}
    for source in (told, said):
        settled |= {what: source[what] for what in settled if source.get(what) is not None}
    return settled
