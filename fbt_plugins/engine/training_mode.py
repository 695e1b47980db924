"""What a model does in training and not in evaluation, seen without weights and without data."""

from __future__ import annotations

from typing import Any

import torch

from ..distill.distiller import Distiller
from ..models.weightless import Shortened, meta_copy

ONE_IMAGE = "a batch of one image cannot train BatchNorm: set train_dataloader.drop_last=True, or another batch_size"


def outputs_in_training(distiller: Distiller, batch: int, size: tuple[int, int]) -> list[tuple[int, ...]]:
    """Shapes of the outputs of the student's stages for a batch in training mode, where dropout of tokens acts.

    Args:
        distiller: whose student is copied to the meta device.
        batch: images in the batch.
        size: (height, width) of the images.

    Raises:
        Exception: whatever the student raises.
    """
    student = distiller.student
    shadow = meta_copy(student, student._shapes).train()
    x: Any = torch.empty(batch, student.in_chans, *(student.input_size or size), device="meta")
    shapes = []
    with torch.no_grad(), Shortened():
        for stage in shadow.stages:
            x = stage(x)
            shapes.append(tuple(x.shape))
        shadow.head(x)
    return shapes


def needs_stages(distiller: Distiller) -> bool:
    """Whether anything takes outputs of the student's stages: a fusion model, or a loss."""
    return bool(distiller.fusions) or any(edge.needs.get("student") for edge in distiller.edges.values())


def stage_problems(distiller: Distiller) -> list[str]:
    """What a fusion model, or a loss between stages, would trip over: stages with other outputs in training.

    Returns:
        One line, or none.
    """
    if not needs_stages(distiller):
        return []
    try:
        shapes = outputs_in_training(distiller, 2, distiller.image_size)
    except Exception:  # it may well run where its tensors have values
        return []
    for number, (shape, spec) in enumerate(zip(shapes, distiller.specs("student"), strict=True), 1):
        if shape != spec.sizes(2):
            found, expected = (" x ".join(map(str, sizes[1:])) for sizes in (shape, spec.sizes(2)))
            what = f"stage {number} gives {found} per image in training, but {expected} in evaluation"
            hint = "a fusion model or a loss needs all of it: drop what leaves tokens out, such as patch_drop_rate"
            return [f"model.student: {distiller.student.name}: {what}; {hint}"]
    return []


def last_batch_problems(distiller: Distiller, loader: Any) -> list[str]:
    """What a last batch that is too small does to a loss, and one of a single image to BatchNorm.

    Args:
        distiller: to be trained.
        loader: of the training data.

    Returns:
        One line, or none.
    """
    size, images = loader.batch_size, len(loader.sampler)
    if size is None:
        return []
    last = size if loader.drop_last else images % size or size
    why = _too_few(distiller, last) or (ONE_IMAGE if last == 1 and _one_is_too_few(distiller, loader) else "")
    which = f"the last of {len(loader)} batches" if last < size else "each"
    count = "one image" if last == 1 else f"{last} images"
    return [f"train_dataloader: {images} images in batches of {size}, {which} with {count}: {why}"] if why else []


def _too_few(distiller: Distiller, images: int) -> str:
    for edge in distiller.edges.values():
        for name, wanted in edge.min_batch.items():
            if images < wanted:
                what = f"{edge.types[name]} ({name}) needs {wanted} or more"
                return f"{what}: set train_dataloader.drop_last=True, or another batch_size"
    return ""


def _one_is_too_few(distiller: Distiller, loader: Any) -> bool:
    try:
        outputs_in_training(distiller, 1, loader.dataset.image_size)
    except Exception as error:  # others are said where the model is checked
        return is_of_one_image(error)
    return False


def is_of_one_image(error: BaseException) -> bool:
    """Whether that is what torch says of BatchNorm on one image."""
    return isinstance(error, ValueError) and "more than 1 value per channel" in str(error)
