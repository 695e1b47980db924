"""From a model's short name, such as "timm:resnet18", to its config, made for images of some size."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...errors import ConfigError, FBTError, nearest, one_line, short, user_path
from ...models.staged import StagedModel
from ...models.weights import read_weights
from ...registry.registries import ARCHITECTURES
from ..finished.student import check_about

_LIBRARIES = {"timm": "timm", "torchvision": "torchvision", "hf": "huggingface"}
FORMS = "timm:NAME, torchvision:NAME, hf:NAME, FILE.py:FACTORY or package.module:FACTORY"
_SYNSET = re.compile(r"n\d{8}")
_SIZES = {"timm": "img_size", "torchvision": "image_size", "huggingface": "image_size", "module": "image_size"}
"""The argument by which a library makes a model for images of a size."""


@dataclass(frozen=True)
class ShortName:
    """A model as it was asked for.

    Attributes:
        role: "teacher" or "student".
        text: as it was typed.
        config: for ``ARCHITECTURES``, without ``num_classes`` and without anything about sizes.
        weights: in words.
        classes: the names of those that its weights are known to know, as far as that is known.
        count: how many classes its weights know, where that is known.
        meant: whether it was said that these are the images' classes: a config has ``num_classes``.
    """

    role: str
    text: str
    config: Mapping[str, Any]
    weights: str = "random weights"
    classes: tuple[str, ...] = ()
    count: int | None = None
    meant: bool = False

    @property
    def has_weights(self) -> bool:
        """Whether it has learned something before."""
        return "checkpoint" in self.config or "pretrained" in self.config

    def knows(self, classes: tuple[str, ...]) -> bool:
        """Whether its classifier is one of these very classes, in this order."""
        if self.classes or self.meant:
            return self.count == len(classes) if self.meant else self.classes == classes
        # ImageNet's folders are called after its classes, and all of timm's and torchvision's weights have their order.
        return self.count == 1000 == len(classes) and all(_SYNSET.fullmatch(name) for name in classes)

    def with_classes(self, number: int, own_head: bool = False) -> ShortName:
        """The same with a head of some classes; 0 for none, which gives features alone.

        Args:
            number: of classes.
            own_head: whether the head of its weights is the one that is meant.
        """
        new = {"head": "new"} if self.has_weights and number and not own_head else {}
        return replace(self, config={**self.config, "num_classes": number, **new})


def named(role: str, model: str | Mapping[str, Any], checkpoint: str | None, pretrained: bool) -> ShortName:
    """Reads a model's short name.

    Args:
        role: "teacher" or "student".
        model: the short name; or a config for ``ARCHITECTURES``, which says all about weights itself, and by a
            teacher's ``num_classes`` that its classes are the images'.
        checkpoint: file with its weights.
        pretrained: whether it begins with its library's weights, where there is no file.

    Raises:
        FBTError: if it is of another form, or the file cannot be read.
    """
    if isinstance(model, Mapping):
        config = {key: value for key, value in model.items() if key != "num_classes"}
        text = str(model.get("name", model.get("path", model.get("type"))))
        count = model.get("num_classes")
        found = ShortName(role, text, config, count=count, meant=bool(count))
        return replace(found, weights="its config's weights") if found.has_weights else found
    config = _parsed(f"--{role}", model)
    if checkpoint is not None:
        return _with_file(role, model, config, str(user_path(checkpoint)))
    if not pretrained and config["type"] == "huggingface" and "/" in config["name"]:
        take = "leave out --no-pretrained" if role == "teacher" else "say --pretrained-student"
        raise ConfigError(
            f"--{role} {model}: it names weights: {take}, or name a type such as hf:dinov2 for random ones"
        )
    if pretrained and config["type"] == "huggingface":
        config = {"type": "huggingface", "pretrained": config["name"]}
    elif pretrained and config["type"] != "module":
        config["pretrained"] = True
    if config["type"] == "module":
        return ShortName(role, model, config, "weights as its factory makes them")
    if not pretrained:
        return ShortName(role, model, config)
    return ShortName(role, model, config, "pretrained", count=_pretrained_classes(config))


def _parsed(option: str, text: object) -> dict[str, Any]:
    if not isinstance(text, str) or not all(text.rpartition(":")):
        known = nearest(f"timm:{text}", [f"timm:{text}"]) if isinstance(text, str) and text in _timm() else ""
        raise ConfigError(f"{option} {short(text) if not isinstance(text, str) else repr(text)}: write {FORMS}{known}")
    library, _, name = text.partition(":")
    if library in _LIBRARIES:
        if _LIBRARIES[library] not in ARCHITECTURES.module_dict:
            raise FBTError(f"{option} {text}: {_LIBRARIES[library]!r} is the plugin fbt-huggingface's: install it")
        return {"type": _LIBRARIES[library], "name": name}
    path, _, factory = text.rpartition(":")
    if not path.endswith(".py"):
        if not re.fullmatch(r"\w+(\.\w+)*", path):
            raise ConfigError(f"{option} {text!r}: write {FORMS}")
        return {"type": "module", "path": text}
    if not (file := user_path(path)).is_file():
        raise ConfigError(f"{option} {text!r}: there is no file {path}")
    return {"type": "module", "path": f"{file.resolve()}:{factory}"}


def _timm() -> list[str]:
    import timm

    return timm.list_models()


def _with_file(role: str, text: str, config: dict[str, Any], checkpoint: str) -> ShortName:
    """With the weights of a file; one that a run of ours wrote says what they are of."""
    about = {} if config["type"] == "huggingface" else read_weights(checkpoint)[1]
    if "name" in about:
        check_about(checkpoint, about)
    classes, count = tuple(map(str, about.get("classes") or ())), None
    written = about.get("config") or {}
    if all(written.get(key) == config.get(key) for key in ("type", "name", "path")):
        config |= {key: value for key, value in written.items() if key != "num_classes"}
        count = written.get("num_classes")
    return ShortName(role, text, {**config, "checkpoint": checkpoint}, f"weights of {checkpoint}", classes, count)


def _pretrained_classes(config: Mapping[str, Any]) -> int | None:
    """How many classes a library's weights know, where it tells without having them."""
    if config["type"] != "timm":
        return 1000 if config["type"] == "torchvision" else None
    import timm

    found = timm.get_pretrained_cfg(str(config["name"]), allow_unregistered=True)
    return getattr(found, "num_classes", None)


def own_size(model: ShortName) -> int:
    """Pixels of a side of the images that a model is made for.

    Raises:
        FBTError: if it cannot be built.
    """
    return max(_built(model).image_size)


def fitted(model: ShortName, size: int) -> tuple[dict[str, Any], StagedModel]:
    """A model's config, changed as little as it takes for images of a size.

    It stays as it is where it takes them. Else it is made for them: by its position embeddings, resized in the forward
    pass where they were learned; or images are resized before it, to the nearest size that it takes, or to its own.

    Args:
        model: with its classes.
        size: pixels of a side of the images.

    Returns:
        The config; and the model without weights, on the meta device.

    Raises:
        FBTError: if it takes them in none of these ways; the line is about the model as it is.
    """
    first: FBTError | None = None
    for change in _changes(model, size):
        try:
            changed = replace(model, config={**model.config, **change})
            built = _built(changed)
            built.specs_at(built.input_size or (size, size))
            return dict(changed.config), built
        except FBTError as error:
            first = first or error
    assert first is not None
    raise FBTError(f"--{model.role} {model.text}: {one_line(first)}") from first


def _changes(model: ShortName, size: int) -> Iterator[dict[str, Any]]:
    """What is tried, the best first. Images are resized only where nothing else helps."""
    argument = _SIZES.get(str(model.config["type"]), "img_size")
    if model.config["type"] == "module" and "image_size" not in model.config:
        yield {argument: size}
    yield {}
    plain = _built(model)
    own, patch = plain.image_size, _patch(plain)
    near = max(round(size / patch), 1) * patch
    # What was learned about positions stays, and is resized in the forward pass.
    made: dict[str, Any] = {"dynamic_img_size": True} if model.has_weights else {argument: near}
    yield made if near == size else {**made, "input_size": near}
    yield {"input_size": own}


def _built(model: ShortName) -> StagedModel:
    try:
        with torch.device("meta"):
            return ARCHITECTURES.build(dict(model.config))
    except FBTError as error:
        raise FBTError(f"--{model.role} {model.text}: {one_line(error)}") from error


def _patch(model: StagedModel) -> int:
    """Pixels of a side of its patches; 1 where it has none."""
    side = getattr(getattr(model.net, "patch_embed", None), "patch_size", 1)
    return max(side) if isinstance(side, list | tuple) else int(side)
