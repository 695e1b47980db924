"""Transforms of single images, from configs: those of torchvision.transforms.v2 by name, and timm's pipeline."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mmengine.registry import TRANSFORMS
from PIL.Image import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from ..errors import ConfigError, nearest, one_line
from ..registry.signatures import argument_problems

_V2: dict[str, Callable[..., Any]] = {
    name: value
    for name, value in vars(v2).items()
    if inspect.isclass(value) and issubclass(value, v2.Transform) and value is not v2.Transform
}

REFUSED = {
    "Normalize": "drop it: each model normalises images in [0, 1] itself, by its own mean and std",
    "LinearTransformation": "drop it: each model normalises images in [0, 1] itself, by its own mean and std",
    "Lambda": "a config holds no functions: do it in a data set of your own (docs/guides/data.md)",
}
"""Transforms that no pipeline here can have, and why."""


def build_transforms(configs: Sequence[Mapping[str, Any]], where: str) -> v2.Compose:
    """One callable from a list of ``dict(type=NAME, **arguments)``.

    NAME is a class of torchvision.transforms.v2, ``timm`` (see `TimmTransform`), or one that somebody registered in
    mmengine's ``TRANSFORMS``: a class whose objects take an image and return one. ``interpolation`` may be a word
    such as ``"bicubic"``; those that contain others (``RandomApply``, ``RandomChoice``) take a list of dicts again.

    Args:
        configs: applied in this order; may be empty.
        where: what error lines begin with.

    Returns:
        Takes a PIL image or a uint8 (3, H, W) tensor and returns a tensor: uint8, unless a transform changed the type.

    Raises:
        ConfigError: with everything that is wrong in ``configs``.
    """
    problems: list[str] = []
    steps = _build(configs, where, problems)
    if problems:
        raise ConfigError(problems)
    return v2.Compose([*steps, v2.PILToTensor()])


def _build(configs: object, where: str, problems: list[str]) -> list[Callable[..., Any]]:
    if not isinstance(configs, Sequence) or isinstance(configs, str):
        problems.append(f"{where}: expected a list of dicts, got {configs!r}")
        return []
    steps = []
    for number, config in enumerate(configs):
        place = f"{where}[{number}]"
        if not isinstance(config, Mapping) or not isinstance(config.get("type"), str):
            problems.append(f"{place}: expected a dict with a 'type', got {config!r}")
            continue
        arguments = {key: value for key, value in config.items() if key != "type"}
        step = _build_one(config["type"], arguments, place, problems)
        if step is not None:
            steps.append(step)
    return steps


def _build_one(name: str, arguments: dict[str, Any], place: str, problems: list[str]) -> Callable[..., Any] | None:
    """The transform, or None after what is wrong with it was added to ``problems``."""
    if name == "timm":
        from timm.data import create_transform  # 0.4 s, only where it is used

        factory: Callable[..., Any] = TimmTransform
        signature: Callable[..., Any] = create_transform
    elif name in _V2:
        factory = signature = _V2[name]
    elif name in TRANSFORMS:
        factory = signature = TRANSFORMS.module_dict[name]
    else:
        known = [*_V2, "timm", *TRANSFORMS.module_dict]
        problems.append(f"{place}: torchvision.transforms.v2 has no {name!r}{nearest(name, known)}")
        return None
    if name in REFUSED:
        problems.append(f"{place} {name}: {REFUSED[name]}")
        return None
    before = len(problems)
    problems += argument_problems(signature, arguments, f"{place} {name}")
    if "transforms" in arguments:
        arguments["transforms"] = _build(arguments["transforms"], f"{place}.transforms", problems)
    if len(problems) > before:
        return None
    try:
        if name in _V2 and isinstance(arguments.get("interpolation"), str):  # words: torchvision >= 0.27 only
            arguments["interpolation"] = InterpolationMode(arguments["interpolation"])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The transform `ToTensor")  # of which we take the equivalent
            return factory(**arguments)
    except Exception as error:  # the libraries check arguments with any exception there is
        problems.append(f"{place} {name}: {one_line(error)}")
        return None


class TimmTransform:
    """timm.data.create_transform with every argument it takes, but the output is an image again: uint8 (3, h, w).

    No normalisation: the Distiller does that for each model by its own mean and std. Random erasing, which timm applies
    to normalised images, means here what it means there: the image is normalised by ``mean`` and ``std`` (ImageNet's
    unless given), erased, and brought back. So ``re_mode="const"`` erases to the mean colour, not to black; ``"pixel"``
    and ``"rand"`` erase to Gaussian noise of that mean and std, cut off at 0 and 255. ``mean`` is also what timm fills
    in where an augmentation moves an image out of its frame. Pixels that are not erased keep their exact value.

    Args:
        arguments: those of timm.data.create_transform, except the few that would change what comes out.

    Raises:
        ConfigError: for those, and for augmentation that timm would ignore without ``is_training=True``.
    """

    _OUTPUT = ("normalize", "separate", "use_prefetcher", "tf_preprocessing", "naflex", "patchify")
    _TRAINING = ("auto_augment", "re_prob", "color_jitter", "scale", "ratio", "hflip", "vflip", "train_crop_mode")

    def __init__(self, **arguments: Any) -> None:
        from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform

        for argument in self._OUTPUT:
            if arguments.get(argument):
                raise ConfigError(f"no {argument!r} here: what comes out is an image, which the Distiller normalises")
        training = arguments.get("is_training", False)
        ignored = [] if training else [argument for argument in self._TRAINING if arguments.get(argument)]
        if ignored:
            raise ConfigError(f"{', '.join(map(repr, ignored))} without is_training=True would be ignored")
        self.erases = training and not arguments.get("no_aug") and arguments.get("re_prob", 0) > 0
        self.transform = create_transform(**arguments | {"normalize": self.erases})
        _keep_a_bit(self.transform)
        self.mean = torch.tensor(arguments.get("mean", IMAGENET_DEFAULT_MEAN)).view(-1, 1, 1)
        self.std = torch.tensor(arguments.get("std", IMAGENET_DEFAULT_STD)).view(-1, 1, 1)

    def __call__(self, image: Image | Tensor) -> Tensor:
        """A PIL image or a (3, H, W) tensor, uint8 or float in [0, 1], to a uint8 (3, h, w) tensor."""
        output = self.transform(functional.to_pil_image(image) if isinstance(image, Tensor) else image)
        if self.erases:
            output = output.mul(self.std).add(self.mean).mul(255).round().clamp(0, 255).to(torch.uint8)
        return output


def _keep_a_bit(transform: Any) -> None:
    """Lets timm's augmentation keep one bit of a colour where its strongest posterizing would keep none.

    That made images black with older Pillows, and Pillow 13 refuses it; ``rand-m9-mstd0.5-inc1`` draws it.
    """
    from timm.data import auto_augment

    for step in getattr(transform, "transforms", ()):
        policy = getattr(step, "policy", ())  # AutoAugment's, a list of lists; the others have a list
        for operation in (*getattr(step, "ops", ()), *(operation for part in policy for operation in part)):
            if operation.aug_fn is auto_augment.posterize:
                operation.aug_fn = _posterize


def _posterize(image: Image, bits_to_keep: int, **options: Any) -> Image:
    from timm.data.auto_augment import posterize

    return posterize(image, max(1, bits_to_keep), **options)
