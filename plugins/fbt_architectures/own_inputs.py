"""What every builder does with weights and a model's own input: a new head, a checkpoint, normalisation, size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from fbt_plugins import ConfigError, load_weights
from fbt_plugins.authoring import pixels


def load_and_read(
    net: nn.Module,
    name: str,
    checkpoint: str | None,
    input_size: int | Sequence[int] | None,
    mean: float | Sequence[float] | None,
    std: float | Sequence[float] | None,
    own: Mapping[str, float | Sequence[float]],
    fresh: Sequence[str] = (),
) -> dict[str, Any]:
    """Loads a checkpoint, and settles the input: what the config says, else the checkpoint, else the model's library.

    Args:
        net: the network, changed in place.
        name: what messages call it.
        checkpoint: file with weights, or "embedded:NAME"; None leaves the network as it is.
        input_size, mean, std: what the config says.
        own: "mean" and "std" of the library.
        fresh: modules that do not get the checkpoint's weights.

    Returns:
        ``input_size``, ``mean`` and ``std`` as :class:`StagedModel` takes them.

    Raises:
        FBTError: if the weights cannot be read, or do not fit.
    """
    told = load_weights(net, checkpoint, name, fresh) if checkpoint else {}
    settled = {"input_size": None, "mean": own["mean"], "std": own["std"]}
    said = {"input_size": None if input_size is None else pixels(input_size), "mean": mean, "std": std}
    for source in (told, said):
        settled |= {what: source[what] for what in settled if source.get(what) is not None}
    return settled


NEW = "new"


def check_head(name: str, head: str | None, has_weights: bool, num_classes: int, own_classes: int | None) -> None:
    """Lets a head give way to a new one only where the config says so.

    Args:
        name: what messages call the model.
        head: what the config says: "new", or None, the weights' own.
        has_weights: whether the config names any.
        num_classes: number of logits that it asks for; 0 leaves the weights' classifier out.
        own_classes: of the library's weights; None where those are not asked for, or unknown.

    Raises:
        ConfigError: if the weights have another number of classes and ``head`` is not "new", or it makes no sense.
    """
    if head not in (None, NEW):
        raise ConfigError(f"{name}: head can be 'new', or None for that of the weights, not {head!r}")
    if num_classes == 0:
        if head == NEW:
            raise ConfigError(f"{name}: head='new' is for classifiers, and num_classes=0 has no head")
        return
    if head == NEW and not has_weights:
        raise ConfigError(f"{name}: head='new' is for a model with weights; set pretrained=True or a checkpoint")
    if head is None and own_classes not in (None, num_classes):
        raise ConfigError(
            f"{name}: its pretrained head has {own_classes} classes, and num_classes is {num_classes}; "
            "say head='new' for a new head, which has to be trained"
        )
