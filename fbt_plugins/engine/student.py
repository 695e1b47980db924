"""A run's student as others use it: built again from its file, with the transform that its images need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from ..data.transforms import build_transforms
from ..errors import FBTError, one_line
from ..models.staged import StagedModel, resized
from ..models.weights import read_weights
from ..registry.loading import load_plugins
from ..registry.registries import ARCHITECTURES

_OF_OTHER_WEIGHTS = ("checkpoint", "pretrained")


def about_student(config: Any, dataset: Any) -> dict[str, Any]:
    """What a student's file says, beside its weights, so that :func:`load_student` can build it again.

    Args:
        config: ``model.student`` of the run.
        dataset: that it was tested on; its transforms are those of new images.
    """
    about: dict[str, Any] = {}
    if isinstance(config, Mapping):
        about["config"] = {key: value for key, value in config.items() if key not in _OF_OTHER_WEIGHTS}
        if about["config"].get("head") == "new":  # it has been trained: the file has it
            del about["config"]["head"]
    if (transforms := getattr(dataset, "transforms", None)) is not None:
        about["transforms"] = list(transforms)
    return about


def load_student(path: str | Path) -> tuple[nn.Module, Callable[[Image | Tensor], Tensor]]:
    """A finished run's student, and what turns an image into its input.

    ``model(transform(image)[None])`` is its logits (1, C), as the run itself tested it.

    Args:
        path: a run's ``student.safetensors``.

    Returns:
        The network in evaluation mode, as timm (or whoever made it) builds it; and the transform, which takes an image
        as the data set stores it, PIL or uint8 (3, H, W), and does what the run's test did: transforms, the resizing
        to the model's own ``input_size`` if it has one, and the normalisation by the mean and std of the file.

    Raises:
        FBTError: if the file is no student's, or a plugin that its architecture needs is not there.
    """
    about = read_weights(str(path))[1]
    if "name" not in about:
        raise FBTError(f"{path}: it does not say which model it is: not a student of a run")
    load_plugins()
    config = about.get("config") or {"type": "timm", "name": about["name"], **about["arguments"]}
    try:
        model: StagedModel = ARCHITECTURES.build({**config, "checkpoint": str(path)})
    except TypeError as error:  # an architecture that is another one here
        raise FBTError(f"{path}: {one_line(error)}") from error
    return model.net.eval(), _transform(model, about)


def _transform(model: StagedModel, about: Mapping[str, Any]) -> Callable[[Image | Tensor], Tensor]:
    steps = about.get("transforms")
    if steps is None:  # nobody has tested it: then at least its size is right
        steps = [{"type": "Resize", "size": list(about.get("image_size", model.image_size))}]
    stored = build_transforms(steps, "transforms")
    scaled = v2.ToDtype(torch.float32, scale=True)
    normalised = v2.Normalize(model.mean, model.std)

    def transform(image: Image | Tensor) -> Tensor:
        image = image if isinstance(image, Tensor) else image.convert("RGB")
        found: Tensor = normalised(resized(scaled(stored(image))[None], model.input_size)[0])
        return found

    return transform
