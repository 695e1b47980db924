"""Mixup and CutMix of a batch, as a function of a seed."""

from __future__ import annotations

import math
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor
from torch import Tensor
from torchvision.transforms import v2

from ..errors import ConfigError
from ..randomness import seeded


class Mixing:
    """Mixes each image of a batch with the one before it (the first with the last), and their labels alike.

    torchvision's MixUp and CutMix do the work: they take batches of any size on any device. (timm's Mixup, which mixes
    with the batch in reverse, refuses odd sizes and works in place.) One draw holds for the whole batch. The parameters
    mean what they mean in timm.

    Images with and without labels are mixed each among themselves, so that a mixed image has a whole label or none.

    Args:
        num_classes: C; 0 where no image has a label.
        mixup_alpha: alpha of mixup's Beta(alpha, alpha); 0 turns it off.
        cutmix_alpha: the same for CutMix.
        prob: how often a batch is mixed at all.
        switch_prob: how often it is CutMix, where both are on.
        label_smoothing: part of each label that is spread evenly over all classes, mixed or not.
        all_labelled: whether every image has a label.

    Raises:
        ConfigError: if a parameter is outside its range.
    """

    def __init__(
        self,
        num_classes: int,
        mixup_alpha: float = 0.0,
        cutmix_alpha: float = 0.0,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        label_smoothing: float = 0.0,
        all_labelled: bool = True,
    ) -> None:
        shares = {"prob": prob, "switch_prob": switch_prob, "label_smoothing": label_smoothing}
        problems = [
            f"Mixing: {name} is from 0 to 1, got {value}" for name, value in shares.items() if not 0 <= value <= 1
        ]
        alphas = {"mixup_alpha": mixup_alpha, "cutmix_alpha": cutmix_alpha}
        problems += [
            f"Mixing: {name} is a finite number from 0, got {value}"
            for name, value in alphas.items()
            if not 0 <= value < math.inf
        ]
        if problems:
            raise ConfigError(problems)
        self.num_classes = num_classes
        self.all_labelled = all_labelled
        self.prob = prob
        self.label_smoothing = label_smoothing
        self.mixup = v2.MixUp(alpha=float(mixup_alpha)) if mixup_alpha > 0 else None
        self.cutmix = v2.CutMix(alpha=float(cutmix_alpha)) if cutmix_alpha > 0 else None
        self.switch_prob = switch_prob if mixup_alpha > 0 else 1.0

    def __call__(self, images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """The mixed batch; ``images`` and ``labels`` themselves stay as they are.

        Args:
            images: (N, 3, H, W) floating point, on any device.
            labels: (N,) class numbers on the same device; -1 of images without a label.
            seed: decides whether, how and how much; derive it from (seed, rank, iteration).

        Returns:
            Images of the same shape and type, and soft labels (N, C), float32, whose rows sum to 1, or are zeros where
            there is no label; where there are no classes, ``labels`` themselves.
        """
        if self.num_classes == 0:
            return self._mixed(images, torch.zeros(len(images), 1, device=images.device), seed)[0], labels
        if self.all_labelled:
            return self._mixed(images, self._soft(labels), seed)
        labelled = labels >= 0
        soft = torch.where(labelled[:, None], self._soft(labels.clamp(min=0)), 0.0)
        images = images.clone()
        for part in (labelled.nonzero().flatten(), (~labelled).nonzero().flatten()):
            if len(part):
                images[part], soft[part] = self._mixed(images[part], soft[part], seed)
        return images, soft

    def _soft(self, labels: Tensor) -> Tensor:
        blank = torch.zeros(len(labels), self.num_classes, device=labels.device)
        soft = blank.scatter(
            1, labels[:, None], 1.0
        )  # not one_hot, which reads its argument and so waits for the device
        return soft * (1 - self.label_smoothing) + self.label_smoothing / self.num_classes

    def _mixed(self, images: Tensor, soft: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        with seeded(seed):
            mixed, switch = torch.rand(2).tolist()
            mix = self.cutmix if self.cutmix and switch < self.switch_prob else self.mixup
            return mix(images, soft) if mix and mixed < self.prob else (images, soft)


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
        data = self._moved(data)
        images = data["inputs"]
        stored = images.dtype == torch.uint8
        images = images.to(dtype=torch.float32 if stored else images.dtype, memory_format=self.memory_format)
        images = images.div_(255) if stored else images
        labels = data["labels"]
        if training and self.mixing is not None:
            images, labels = self.mixing(images, labels, self.step_seed)
        return {**data, "inputs": images, "labels": labels}

    def _moved(self, data: Any) -> Any:
        if isinstance(data, dict):
            return {key: self._moved(value) for key, value in data.items()}
        return data.to(self.device, non_blocking=True)
