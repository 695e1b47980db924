"""The images and labels that a loop of one's own gives, and whether images may come normalised."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..models.staged import StagedModel

MOST_OUTSIDE = 0.1
"""Share of values outside of [0, 1] that a batch may have: noise and interpolation leave it here and there."""


def check_images(images: Any, channels: Collection[int], size: tuple[int, int] | None, normalised: bool) -> None:
    """Looks at a batch, which waits for the device.

    Args:
        images: (N, C, H, W) is right; an image of one channel has it for all.
        channels: that the models take.
        size: (height, width) that they must have, if it must be one.
        normalised: whether they may have any values, or are in [0, 1].

    Raises:
        ConfigError: if they are not like that.
    """
    if not isinstance(images, Tensor) or images.ndim != 4:
        what = f"of shape {tuple(images.shape)}" if isinstance(images, Tensor) else f"a {type(images).__name__}"
        raise ConfigError(f"the images are {what}; give one tensor (N, C, H, W)")
    if not len(images):
        raise ConfigError(f"the batch is empty: its images have shape {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ConfigError(
            f"the images are {images.dtype}; give floating-point images in [0, 1], as ToTensor() makes them"
        )
    for count in channels:
        if images.shape[1] not in (1, count):
            last = "; the channels are last: give images.permute(0, 3, 1, 2)" if images.shape[3] == count else ""
            raise ConfigError(
                f"the images have shape {tuple(images.shape)}, which is {images.shape[1]} channels, and the models "
                f"take {count}{last or '; give (N, C, H, W)'}"
            )
    found = tuple(images.shape[-2:])
    if size is not None and found != size:
        (h, w), (height, width) = found, size
        raise ConfigError(
            f"the images have {h}x{w} pixels, and the distiller was built for {height}x{width}: "
            f"say image_size=({h}, {w}) where it is built"
        )
    if not images.isfinite().all():
        raise ConfigError("the images have values that are NaN or infinite; look at what the loader does to them")
    if not normalised and ((images < -0.05) | (images > 1.05)).float().mean().item() > MOST_OUTSIDE:
        low, high = (bound.item() for bound in images.detach().aminmax())
        raise ConfigError(
            f"the images have values from {low:.3g} to {high:.3g}; the distiller takes images in [0, 1] and normalises "
            "them for each model: take the normalisation out of the loader, or say normalised=True in from_models"
        )


def check_labels(labels: Any, images: int, classes: int | None) -> None:
    """Looks at a batch's labels, which waits for the device.

    Args:
        labels: (images,) class numbers, -1 of an image that has none, or (images, classes) soft labels is right.
        images: how many there are.
        classes: that logits are compared over; None where none are.

    Raises:
        ConfigError: if they are not like that.
    """
    right = f"({images},) class numbers (torch.int64), or ({images}, {classes or 'classes'}) floating-point soft labels"
    if not isinstance(labels, Tensor):
        raise ConfigError(f"the labels are a {type(labels).__name__}; give a tensor of {right}")
    soft = labels.is_floating_point() and labels.ndim == 2
    shape = (images, classes or labels.shape[1]) if soft else (images,)
    if not (soft or labels.dtype in (torch.int64, torch.uint8)) or tuple(labels.shape) != shape:
        raise ConfigError(f"the labels are {labels.dtype} of shape {tuple(labels.shape)}; give {right}")
    if soft:
        if not labels.isfinite().all():
            raise ConfigError("the soft labels have values that are NaN or infinite")
        return
    low, high = (int(bound) for bound in labels.aminmax())
    if low < -1 or (classes is not None and high >= classes):
        wrong, last = (low if low < -1 else high), "" if classes is None else f" to {classes - 1}"
        raise ConfigError(
            f"the labels have class number {wrong}; give numbers from 0{last}, -1 for an image without a label, "
            "or no labels at all where no loss takes any"
        )


def check_one_normalisation(models: Mapping[str, StagedModel]) -> None:
    """Whether images that are normalised once can be right for all models; one that says nothing takes any.

    Args:
        models: by role.

    Raises:
        ConfigError: if they can't.
    """
    said = {role: (model.mean, model.std) for role, model in models.items() if {*model.mean, *model.std} != {0.0, 1.0}}
    if len(set(said.values())) > 1:
        values = ", ".join(f"the {role} mean {mean} and std {std}" for role, (mean, std) in said.items())
        raise ConfigError(f"normalised=True: no loader can be right for both models: {values}; give images in [0, 1]")
