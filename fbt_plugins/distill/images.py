"""The images that a loop of one's own gives, and whether they may come normalised."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..errors import ConfigError
from ..models.staged import StagedModel

MOST_OUTSIDE = 0.1
"""Share of values outside of [0, 1] that a batch may have: noise and interpolation leave it here and there."""


def check_images(images: Tensor, size: tuple[int, int] | None, normalised: bool) -> None:
    """Looks at a batch, which waits for the device once.

    Args:
        images: (N, C, H, W).
        size: (height, width) that they must have, if it must be one.
        normalised: whether they may have any values, or are in [0, 1].

    Raises:
        ConfigError: if they are not like that.
    """
    if not images.is_floating_point():
        raise ConfigError(
            f"the images are {images.dtype}; give floating-point images in [0, 1], as ToTensor() makes them"
        )
    found = tuple(images.shape[-2:])
    if size is not None and found != size:
        (h, w), (height, width) = found, size
        raise ConfigError(
            f"the images have {h}x{w} pixels, and the distiller was built for {height}x{width}: "
            f"say image_size=({h}, {w}) where it is built"
        )
    if not normalised and ((images < -0.05) | (images > 1.05)).float().mean().item() > MOST_OUTSIDE:
        low, high = (bound.item() for bound in images.detach().aminmax())
        raise ConfigError(
            f"the images have values from {low:.3g} to {high:.3g}; the distiller takes images in [0, 1] and normalises "
            "them for each model: take the normalisation out of the loader, or say normalised=True in from_models"
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
