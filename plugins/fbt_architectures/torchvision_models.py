"""``type="torchvision"``: any classifier of torchvision, or one without its head, as a StagedModel, cut by tracing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torchvision import models

from fbt_plugins import ConfigError, FBTError, StagedModel, UnknownNameError, nearest
from fbt_plugins.authoring import Catalogue, InHand, one_line, pixels

from .cut_points import classifiers_of
from .own_inputs import NEW, check_head, load_and_read
from .traced_cut import cut_by_trace

_WITHOUT_AUXILIARY_HEADS = {"googlenet": {"aux_logits": False}, "inception_v3": {"aux_logits": False}}
"""Their heads on inner stages make the output in training a tuple."""

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""What all of torchvision's weights of classifiers were trained with."""


_ANY = 1
"""Classes of a classifier that is taken away."""


def torchvision_names() -> list[str]:
    """All classifiers of torchvision."""
    return models.list_models(module=models)


def build_torchvision(
    name: str,
    num_classes: int | None = None,
    stages: int | Sequence[str] | None = None,
    checkpoint: str | None = None,
    pretrained: bool = False,
    head: str | None = None,
    input_size: int | tuple[int, int] | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    family: str | None = None,
    layout: str | Sequence[str] | None = None,
    **arguments: Any,
) -> StagedModel:
    """Builds a torchvision model and cuts it.

    Args:
        name: torchvision's name of the model.
        num_classes: number of logits, which has to be given; 0 puts an identity in the place of the last linear layer.
        stages: None for four stages; a number of stages; or the names of the modules that end them.
        checkpoint: file with weights.
        pretrained: download torchvision's own default weights; not on the meta device, where nothing has weights.
        head: "new" for a new head in the place of the weights' own, which need not have as many classes.
        input_size: pixels that images are resized to before this model.
        mean, std: input normalisation; by default that of torchvision's weights.
        family: "cnn", "attention", "mlp" or "hybrid"; None reads it off what the stages compute.
        layout: layout of the stages' outputs; None reads it off their sizes.
        arguments: any other argument that torchvision takes for this model.

    Raises:
        UnknownNameError: if torchvision has no such model.
        ConfigError: if torchvision refuses an argument, or the model cannot be cut.
        FBTError: if weights cannot be loaded.
    """
    known = torchvision_names()
    if name not in known:
        raise UnknownNameError(f"torchvision has no classifier {name!r}{nearest(name, known)}")
    if num_classes is None:
        raise ConfigError(f"{name}: argument 'num_classes' is missing")
    weights = models.get_model_weights(name).DEFAULT  # type: ignore[attr-defined]
    preset = weights.transforms()
    given = _WITHOUT_AUXILIARY_HEADS.get(name, {}) | arguments
    own_classes = len(weights.meta["categories"]) if pretrained else None
    check_head(name, head, pretrained or checkpoint is not None, num_classes, own_classes)
    loads = pretrained and torch.get_default_device().type != "meta"
    encoder = num_classes == 0
    net = _create(name, num_classes or _ANY, weights if loads else None, given)
    size = getattr(net, "image_size", preset.crop_size[0])
    classifiers = classifiers_of(net, (3, size, size)) if head == NEW or encoder else []
    if encoder:
        _replace(net, classifiers[0], nn.Identity())
    elif loads and classifiers:
        _replace_classifier(net, classifiers[0], num_classes)
    own = {"mean": preset.mean, "std": preset.std}
    about = load_and_read(net, name, checkpoint, input_size, mean, std, own, fresh=classifiers[:1])
    return cut_by_trace(
        net,
        stages,
        name=name,
        image_size=(size, size),
        layout=layout,
        family=family,
        encoder=encoder,
        arguments={"num_classes": num_classes, **arguments},
        **about,
    )


def _kind(name: str) -> str:
    build = models.get_model_builder(name)  # type: ignore[attr-defined]
    return build.__module__.rsplit(".", 1)[-1]


def torchvision_in_hand(
    net: nn.Module,
    image_size: int | Sequence[int] | None = None,
    stages: int | Sequence[str] | None = None,
    input_size: int | Sequence[int] | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    family: str | None = None,
    layout: str | Sequence[str] | None = None,
) -> StagedModel:
    """Cuts a network of torchvision; the arguments are those of :func:`build_torchvision`.

    Args:
        image_size: pixels of the images; a transformer has a size of its own, and None is else 224.
    """
    name = type(net).__name__
    if getattr(net, "aux_logits", False):
        raise ConfigError(f"{name}: its auxiliary heads give other outputs in training; build it with aux_logits=False")
    about = load_and_read(net, name, None, input_size, mean, std, _IMAGENET)
    size = pixels(getattr(net, "image_size", None) or image_size or 224)
    return cut_by_trace(net, stages, name=name, image_size=size, layout=layout, family=family, **about)


def _from_torchvision(net: nn.Module) -> bool:
    return type(net).__module__.startswith("torchvision.models.")


build_torchvision.in_hand = InHand(torchvision_in_hand, _from_torchvision)  # type: ignore[attr-defined]
build_torchvision.catalogue = Catalogue(torchvision_names, _kind)  # type: ignore[attr-defined]


def _create(name: str, num_classes: int, weights: Any, arguments: dict[str, Any]) -> nn.Module:
    if name in _WITHOUT_AUXILIARY_HEADS:
        arguments = {"init_weights": weights is None} | arguments  # said aloud, torchvision does not warn about it
    try:
        if weights is not None:
            return models.get_model(name, weights=weights, **arguments)
        try:
            return models.get_model(name, weights=None, num_classes=num_classes, **arguments)
        except NotImplementedError:  # RegNet works out its widths with tensors, which needs their values
            with torch.device("cpu"):
                net = models.get_model(name, weights=None, num_classes=num_classes, **arguments)
            return net.to(torch.get_default_device())
    except Exception as error:
        if weights is None or isinstance(error, TypeError | ValueError | AssertionError):
            raise ConfigError(f"{name}: torchvision refuses these arguments ({one_line(error)})") from error
        raise FBTError(
            f"{name}: torchvision's weights could not be downloaded ({one_line(error)}); "
            "without a network, put the weights in a file and name it with checkpoint="
        ) from error


def _replace_classifier(net: nn.Module, name: str, num_classes: int) -> None:
    """A fresh classifier of another size in the place of the one that the weights came with."""
    old = net.get_submodule(name)
    new: nn.Module
    if isinstance(old, nn.Conv2d):
        new = nn.Conv2d(old.in_channels, num_classes, old.kernel_size)  # type: ignore[arg-type]
    else:
        new = nn.Linear(old.in_features, num_classes)  # type: ignore[arg-type]
    _replace(net, name, new)


def _replace(net: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(net.get_submodule(parent), last, new)
