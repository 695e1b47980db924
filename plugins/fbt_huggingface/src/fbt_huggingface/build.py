"""``type="huggingface"``: a vision classifier of transformers, or one without its head, as a StagedModel."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fbt_plugins import ConfigError, FBTError, StagedModel, load_weights
from fbt_plugins.authoring import InHand, give_logits

from .families import FAMILIES, pair
from .parts import Row
from .sources import (
    changed_arguments,
    is_folder,
    load_model,
    make_config,
    model_class,
    name_of,
    normalisation,
    read_config,
    refused,
)

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
NEW = "new"
_NEED_A_CLASSIFIER = ("siglip",)
"""Families that transformers cannot initialise without one: an encoder's is taken away afterwards."""
OTHER = {"mean": (0.5,), "std": (0.5,)}  # for images that have no three channels


def build_huggingface(
    name: str | None = None,
    num_classes: int | None = None,
    stages: int | Sequence[str] | None = None,
    checkpoint: str | None = None,
    pretrained: str | None = None,
    head: str | None = None,
    input_size: int | tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    feature: str = "classifier",
    family: str | None = None,
    **arguments: Any,
) -> StagedModel:
    """Builds a classifier (or encoder) of transformers from its config and cuts it.

    Args:
        name: transformers' model type, such as "vit"; may be left out where ``pretrained`` or a folder says it.
        num_classes: number of logits, which has to be given; 0 leaves the classifier out, and features are what it
            would be given.
        stages: None for the family's own stages; a number of stages; or the names of the units that end them:
            "blocks.3" in a row of equal blocks, "stages.2" or "stages.2.4" in a pyramid.
        checkpoint: weights of this very model: a folder that ``save_pretrained`` wrote, or a file (safetensors, a state
            dict, or a checkpoint of a run).
        pretrained: a model of the Hugging Face Hub, "org/name", or a folder, to start from.
        head: "new" puts a fresh head on weights, which has to be trained: where theirs has other classes, or they have
            none. None takes theirs.
        input_size: pixels that images are resized to before this model; by default what the checkpoint says, if our
            engine wrote it, else None, which leaves them as they are.
        mean, std: input normalisation; by default that of the checkpoint, or of the preprocessor_config.json beside the
            weights, else ImageNet's.
        feature: what is transferred as feature: "classifier", the input of the last linear layer, or "avgpool", the
            mean over all positions.
        family: "cnn", "attention", "mlp" or "hybrid"; None reads it off what the stages compute.
        arguments: of the model's config, such as ``image_size=32`` or ``hidden_size=192``.

    Raises:
        UnknownNameError: if there is no such model type here.
        ConfigError: if the config has no such argument, or refuses its value.
        FBTError: if weights cannot be had or do not fit.
    """
    source = _source(pretrained, checkpoint)
    stored = read_config(source) if source else None
    if head not in (None, NEW) or (head and not source):
        what = f"not {head!r}" if head != NEW else "and there are no weights that could have another"
        raise ConfigError(f"huggingface: head can be {NEW!r}, or None for that of the weights, {what}")
    if stored is not None:
        name = name_of(stored, name, str(source))
    if name is None:
        raise ConfigError("huggingface: argument 'name' is missing")
    if num_classes is None:
        raise ConfigError(f"{name}: argument 'num_classes' is missing")
    encoder = num_classes == 0
    if encoder and head == NEW:
        raise ConfigError(f"{name}: head={NEW!r} is for classifiers, and num_classes=0 has no head")
    if stored is not None and head is None and stored.num_labels != num_classes and not encoder:
        raise ConfigError(
            f"{name}: {source!r} has {stored.num_labels} classes, not {num_classes}; head={NEW!r} puts a fresh head on "
            "it, which has to be trained"
        )
    taken = encoder and name in _NEED_A_CLASSIFIER
    config = make_config(name, 1 if taken else num_classes, arguments, stored)
    net = _net(name, config, source, fresh_head=head == NEW or encoder)
    if taken:
        net.classifier = nn.Identity()
    about = load_weights(net, checkpoint, name) if checkpoint and not source else normalisation(source or "")

    defaults = _default(_seen(config)) | about
    return _cut(
        net,
        name,
        stages,
        feature,
        family=family,
        mean=mean or defaults["mean"],
        std=std or defaults["std"],
        input_size=input_size or about.get("input_size"),
        encoder=encoder,
        arguments={"num_classes": num_classes, **changed_arguments(config)},
    )


def huggingface_in_hand(
    net: Any,
    image_size: int | tuple[int, int] | None = None,
    stages: int | Sequence[str] | None = None,
    input_size: int | tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    feature: str = "classifier",
    family: str | None = None,
) -> StagedModel:
    """Cuts a classifier of transformers that is built already; the arguments are those of :func:`build_huggingface`.

    Args:
        image_size: pixels of the images; where it is None, or the network has a size of its own, that of its config.
        mean, std: input normalisation; by default that of the preprocessor_config.json where its weights come from,
            else ImageNet's.
    """
    name = _CLASSES[type(net).__name__]
    defaults = _default(_seen(net.config)) | normalisation(getattr(net, "name_or_path", ""))
    return _cut(
        net,
        name,
        stages,
        feature,
        image_size=image_size,
        family=family,
        mean=mean or defaults["mean"],
        std=std or defaults["std"],
        input_size=input_size,
    )


_CLASSES = {family.classifier: name for name, family in FAMILIES.items()}


def _from_transformers(net: nn.Module) -> bool:
    return type(net).__module__.startswith("transformers.") and type(net).__name__ in _CLASSES


build_huggingface.in_hand = InHand(huggingface_in_hand, _from_transformers)  # type: ignore[attr-defined]


def _cut(
    net: Any,
    name: str,
    stages: int | Sequence[str] | None,
    feature: str,
    input_size: int | tuple[int, int] | None,
    image_size: int | tuple[int, int] | None = None,
    encoder: bool = False,
    **about: Any,
) -> StagedModel:
    kind = FAMILIES[name]
    prefix_tokens = kind.prefix_tokens(net)
    row = _row(name, net)
    if encoder and (feature != "classifier" or any(True for _ in row.classifier.parameters())):
        what = "feature='avgpool'" if feature != "classifier" else "num_classes=0"
        raise ConfigError(f"{name}: {what} is not to be had of an encoder of this family")
    parts = kind.cut.cut(row, stages, feature, prefix_tokens=prefix_tokens, encoder=encoder)
    layouts, prefixes = list(parts.layouts), [prefix_tokens] * len(parts.stages)
    if kind.before:
        layouts[:-1], prefixes[:-1] = [[value] * (len(layouts) - 1) for value in (kind.before, 0)]
    seen = _seen(net.config)
    return StagedModel(
        net,
        parts.stages,
        parts.head,
        layout=layouts,
        raster=kind.order is None,
        order=kind.order,
        image_size=pair(getattr(seen, "image_size", None) or image_size or 224),
        prefix_tokens=prefixes,
        prefix=_prefix(row.stem),
        in_chans=getattr(seen, "num_channels", 3),
        input_size=pair(input_size) if input_size else None,
        name=name,
        feature=feature,
        **about,
    )


def _source(pretrained: str | None, checkpoint: str | None) -> str | None:
    """The folder or the name on the Hub that says what the model is; a file with weights does not."""
    if pretrained is not None and not isinstance(pretrained, str):
        raise ConfigError(f"huggingface: pretrained is a name on the Hub, 'org/name', or a folder, not {pretrained!r}")
    if pretrained is not None and checkpoint:
        raise ConfigError("huggingface: pretrained and checkpoint both say where weights come from; give one of them")
    if checkpoint and Path(checkpoint).name == "model.safetensors":  # of save_pretrained, in names of an older release,
        checkpoint = str(Path(checkpoint).parent)  # which transformers knows how to translate
    return pretrained or (checkpoint if checkpoint and is_folder(checkpoint) else None)


def _net(name: str, config: Any, source: str | None, fresh_head: bool) -> Any:
    """The model, of transformers' own class, which answers with logits."""
    if source and torch.get_default_device().type != "meta":
        net = load_model(name, source, config, fresh_head)
    else:
        try:
            net = model_class(name)(config)
        except Exception as error:
            raise refused(name, error) from error
    if (answer := FAMILIES[name].answer) == "logits":
        return give_logits(net)
    net.register_forward_hook(partial(_answer, answer))
    return net


def _answer(name: str, net: nn.Module, args: Any, output: Any) -> Any:
    return getattr(output, name, output)


def _row(name: str, net: Any) -> Row:
    try:
        return FAMILIES[name].row(net)
    except AttributeError as error:
        raise FBTError(f"{name}: transformers {version('transformers')} builds it of other parts ({error})") from error


def _seen(config: Any) -> Any:
    """The part of a config that is about images: of a model of images and text, that of its vision tower."""
    return getattr(config, "vision_config", config)


def _default(config: Any) -> dict[str, Any]:
    channels = getattr(config, "num_channels", 3)
    return IMAGENET if channels == 3 else {k: v * channels for k, v in OTHER.items()}


def _prefix(stem: nn.Module) -> Tensor | None:
    """A transformer's class, distillation and register tokens as it learned them, (tokens, width)."""
    embeddings = getattr(stem, "part", stem)
    tokens = [getattr(embeddings, n, None) for n in ("cls_token", "distillation_token", "register_tokens")]
    found = [t.detach()[0] for t in tokens if isinstance(t, nn.Parameter)]
    return torch.cat(found) if found else None
