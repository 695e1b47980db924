"""``type="timm"``: any timm classifier or encoder as a StagedModel, cut by declaration or by tracing."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import nn

from fbt_plugins import ConfigError, FBTError, StagedModel, UnknownNameError, nearest
from fbt_plugins.authoring import Catalogue, InHand, give_features, one_line, pixels

from .cut_points import classifiers_of
from .own_inputs import NEW, check_head, load_and_read
from .timm_declared import DECLARED, ORDERS, family_of
from .traced_cut import cut_by_trace


def build_timm(
    name: str,
    num_classes: int | None = None,
    stages: int | Sequence[str] | None = None,
    checkpoint: str | None = None,
    pretrained: bool = False,
    head: str | None = None,
    input_size: int | tuple[int, int] | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    feature: str = "classifier",
    family: str | None = None,
    layout: str | Sequence[str] | None = None,
    **arguments: Any,
) -> StagedModel:
    """Builds a timm model and cuts it.

    Args:
        name: timm's name of the model, or one that a plugin registered with timm. With a tag ("resnet50.tv_in1k") it
            says which weights ``pretrained=True`` means; mean and std are theirs also where it is False.
        num_classes: number of logits, which has to be given; 0 builds an encoder, without a classifier.
        stages: None for four stages, cut where the field cuts this family; a number of stages; or the names of the
            units that end them.
        checkpoint: file with weights, or "embedded:NAME" for one that is shipped.
        pretrained: download timm's own weights; not on the meta device, where nothing has weights.
        head: "new" for a new head in the place of the weights' own, which need not have as many classes.
        input_size: pixels that images are resized to before this model; by default what the checkpoint says, if our
            engine wrote it, else None, which leaves them as they are.
        mean, std: input normalisation; by default that of the checkpoint, else that of timm's configuration.
        feature: what is transferred as feature: "classifier", the input of the last linear layer (a ViT's class token),
            or "avgpool", the mean over all positions behind the last norm.
        family: "cnn", "attention", "mlp" or "hybrid"; None reads it off what the stages compute.
        layout: layout of the stages' outputs, where a trace cannot read it off their sizes.
        arguments: any other argument that timm takes for this model.

    Raises:
        UnknownNameError: if timm has no such model.
        ConfigError: if timm refuses an argument, or the model cannot be cut.
        FBTError: if weights cannot be loaded.
    """
    if not timm.is_model(name):
        raise UnknownNameError(f"timm has no model {name!r}{nearest(name, timm.list_models())}")
    base, _, tag = name.partition(".")
    if tag and tag not in (tags := _tags(base)):
        raise UnknownNameError(f"timm has no weights {tag!r} of {base!r}{nearest(tag, tags, limit=12)}")
    if num_classes is None:
        raise ConfigError(f"{name}: argument 'num_classes' is missing")
    encoder = num_classes == 0
    own_classes = _pretrained_classes(name, num_classes, arguments) if pretrained else None
    check_head(name, head, pretrained or checkpoint is not None, num_classes, own_classes)
    loads = pretrained and torch.get_default_device().type != "meta"
    net = _create(name, num_classes, loads, arguments)
    if loads and head == NEW and own_classes == num_classes:
        net.reset_classifier(num_classes)  # type: ignore[operator] # where the numbers differ, timm has done so
    config: Any = net.pretrained_cfg
    height, width = pixels(_own_size(net) or arguments.get("img_size") or config["input_size"][1:])
    in_chans = arguments.get("in_chans", config["input_size"][0])
    fresh = classifiers_of(net, (in_chans, height, width)) if head == NEW else _left_out(config) if encoder else ()
    about: dict[str, Any] = load_and_read(net, name, checkpoint, input_size, mean, std, config, fresh) | dict(
        feature=feature,
        image_size=(height, width),
        in_chans=in_chans,
        family=family,
        name=name,
        arguments={"num_classes": num_classes, **arguments},
    )
    if encoder and feature != "classifier":
        raise ConfigError(
            f"{name}: feature={feature!r} is for classifiers; an encoder has what its pooling gives: {_POOL}"
        )
    return _cut(net, stages, layout, **about)


def timm_in_hand(
    net: nn.Module,
    image_size: int | Sequence[int] | None = None,
    stages: int | Sequence[str] | None = None,
    input_size: int | Sequence[int] | None = None,
    in_chans: int | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    feature: str = "classifier",
    family: str | None = None,
    layout: str | Sequence[str] | None = None,
) -> StagedModel:
    """Cuts a network that ``timm.create_model`` built; the arguments are those of :func:`build_timm`.

    Args:
        image_size: pixels of the images; where it is None, or the network has a size of its own, that of timm.
        in_chans: image channels; None asks timm's first convolution.
    """
    config: Any = net.pretrained_cfg
    first = config.get("first_conv")
    first = getattr(net.get_submodule(first), "in_channels", None) if isinstance(first, str) else None
    name = config["architecture"]
    return _cut(
        net,
        stages,
        layout,
        feature=feature,
        image_size=pixels(_own_size(net) or image_size or config["input_size"][1:]),
        in_chans=in_chans or first or config["input_size"][0],
        family=family,
        name=name,
        **load_and_read(net, name, None, input_size, mean, std, config),
    )


def _from_timm(net: nn.Module) -> bool:
    return isinstance(getattr(net, "pretrained_cfg", None), dict) and hasattr(net, "get_classifier")


build_timm.in_hand = InHand(timm_in_hand, _from_timm)  # type: ignore[attr-defined]


def _own_size(net: nn.Module) -> Any:
    """Of the images that a network with position embeddings is built for."""
    patches = getattr(net, "patch_embed", getattr(net, "stem", None))
    return getattr(patches, "img_size", None)


def _cut(
    net: nn.Module, stages: int | Sequence[str] | None, layout: str | Sequence[str] | None, **about: Any
) -> StagedModel:
    """Cuts it by declaration where there is one for its class, else by a trace."""
    about |= {"prefix": _prefix(net), "family": about["family"] or family_of(about["name"], net)}
    encoder = getattr(net, "num_classes", None) == 0
    declaration = DECLARED.get(type(net).__name__)
    if declaration is None:
        order = ORDERS.get(type(net).__name__)
        net = give_features(net) if encoder else net  # some answer with tokens
        return cut_by_trace(net, stages, layout=layout, raster=order is None, order=order, encoder=encoder, **about)
    prefix_tokens = getattr(net, "num_prefix_tokens", 0) if declaration.layout == "NLC" else 0
    return declaration.cut(net, stages, prefix_tokens=prefix_tokens, encoder=encoder, **about)


_POOL = "set global_pool, to 'avg' with fc_norm=False for example"


def _left_out(config: Any) -> list[str]:
    """The classifiers that a file with weights may have, and an encoder has not."""
    names = config.get("classifier") or ()
    return [names] if isinstance(names, str) else list(names)


def _tags(name: str) -> list[str]:
    """Of the weights that timm knows for a model."""
    configs = timm.models.get_arch_pretrained_cfgs(name)
    return [full.partition(".")[2] for full in configs if "." in full]


def _kind(name: str) -> str:
    with torch.device("meta"):
        net = timm.create_model(name)
    return f"{timm.model_entrypoint(name).__module__.rsplit('.', 1)[-1]}/{type(net).__name__}"


build_timm.catalogue = Catalogue(timm.list_models, _kind)  # type: ignore[attr-defined]


def _pretrained_classes(name: str, num_classes: int, arguments: dict[str, Any]) -> int:
    """Of timm's weights for a model, which it tells without having them."""
    with torch.device("meta"):
        config: Any = _create(name, num_classes, False, arguments).pretrained_cfg
    if not any(config.get(source) for source in ("url", "hf_hub_id", "file", "state_dict")):
        raise ConfigError(f"{name}: timm has no pretrained weights of it")
    return config["num_classes"]


def _create(name: str, num_classes: int, pretrained: bool, arguments: dict[str, Any]) -> nn.Module:
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **arguments)
    except TypeError as error:
        raise ConfigError(f"{name}: {_refused(name, error)}") from error
    except (AssertionError, ValueError, RuntimeError, LookupError) as error:
        if pretrained:
            raise FBTError(f"{name}: timm's pretrained weights could not be had ({one_line(error)})") from error
        raise ConfigError(f"{name}: timm refuses these arguments ({one_line(error)})") from error
    except Exception as error:
        if not pretrained:
            raise
        raise FBTError(
            f"{name}: timm's pretrained weights could not be downloaded ({one_line(error)}); "
            "without a network, put the weights in a file and name it with checkpoint="
        ) from error


def _refused(name: str, error: TypeError) -> str:
    """timm's TypeError in words, with the nearest argument that the model's class takes."""
    text = " ".join(str(error).split())
    if "unexpected keyword argument" in text:
        argument = text.rsplit("'", 2)[1]
        with torch.device("meta"):
            known = inspect.signature(type(timm.create_model(name)).__init__).parameters
        return (
            f"timm takes no argument {argument!r} for it{nearest(argument, [k for k in known if k != 'self'], limit=0)}"
        )
    if "multiple values for keyword argument" in text:
        return f"timm fixes {text.rsplit(chr(39), 2)[1]!r} for this name; use a name that is registered with that value"
    return f"timm refuses these arguments ({text})"


def _prefix(net: nn.Module) -> torch.Tensor | None:
    """A transformer's class, distillation and register tokens as it learned them, (tokens, width)."""
    tokens = [getattr(net, n, None) for n in ("cls_token", "dist_token", "reg_token")]
    found = [t.detach()[0] for t in tokens if isinstance(t, nn.Parameter)]
    return torch.cat(found) if found else None
