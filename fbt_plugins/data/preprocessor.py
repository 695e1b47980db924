"""From a batch of the loader to what a model's step takes."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor

from .mixing import Mixing


class ImagePreprocessor(BaseDataPreprocessor):
    """Moves a batch to the device, scales images to [0, 1] and mixes them in training.

    Normalisation is each model's own business; see ``Distiller.prepare``.

    Args:
        mixing: batch augmentation of training batches, if any.
        memory_format: of the images; ``torch.channels_last`` where the models have it.

    Attributes:
        step_seed: decides how the next training batch is mixed; the engine sets it before each step.
    """

    def __init__(
        self, mixing: Mixing | None = None, memory_format: torch.memory_format = torch.preserve_format
    ) -> None:
        super().__init__()
        self.mixing, self.memory_format = mixing, memory_format
        self.step_seed = 0

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """``inputs`` (N, C, H, W) uint8 or float -> float in [0, 1]; labels become soft where images are mixed."""
        data = {key: value.to(self.device, non_blocking=True) for key, value in data.items()}
        images = data["inputs"]
        stored = images.dtype == torch.uint8
        images = images.to(dtype=torch.float32 if stored else images.dtype, memory_format=self.memory_format)
        images = images.div_(255) if stored else images
        labels = data["labels"]
        if training and self.mixing is not None:
            images, labels = self.mixing(images, labels, self.step_seed)
        return {**data, "inputs": images, "labels": labels}
