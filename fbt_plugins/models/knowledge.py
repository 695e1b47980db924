"""What a model knows about a batch of images, and what the data set says about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Knowledge:
    """K = {f, p} of one model on one batch (FBT, arXiv 2410.12342, section "Spatial-agnostic knowledge").

    Attributes:
        features: (N, D), the input of the model's last linear layer; of an encoder what its head's pooling gives.
        logits: (N, C), before any softmax; None of an encoder, which is a model without a classifier.
        stages: outputs of the stages that were asked for, by number from 1.
        extra: anything else a model has to tell (a distillation token's logits, for example), by name.
    """

    features: Tensor
    logits: Tensor | None
    stages: Mapping[int, Tensor] = field(default_factory=dict)
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def detach(self) -> Knowledge:
        """The same knowledge as constants: no gradient flows back to the giver."""
        stages = {number: output.detach() for number, output in self.stages.items()}
        extra = {name: value.detach() for name, value in self.extra.items()}
        logits = None if self.logits is None else self.logits.detach()
        return Knowledge(self.features.detach(), logits, stages, extra)

    @property
    def output(self) -> Tensor:
        """What the model's network gives: logits, or an encoder's features."""
        return self.features if self.logits is None else self.logits


@dataclass(frozen=True)
class Batch:
    """What a loss may know about the images beside two models' knowledge.

    Attributes:
        labels: (N,) class numbers, -1 of an image that has no label; (N, C) soft labels, a row of zeros of such an
            image; or None, if no image has any.
        index: (N,) position of each image in its data set (memory banks use it), or None.
    """

    labels: Tensor | None
    index: Tensor | None = None

    @property
    def labelled(self) -> Tensor | None:
        """(N,) whether each image has a label; None if none has."""
        if self.labels is None:
            return None
        return (self.labels != 0).any(1) if self.labels.ndim == 2 else self.labels >= 0

    def target_class(self, teacher: Tensor | None) -> Tensor:
        """(N,) class numbers: of each image's label (of soft ones the largest), or the teacher's where it has none.

        Args:
            teacher: its logits (N, C).
        """
        assert teacher is not None, "losses that take a target class need logits"
        chosen = teacher.detach().argmax(1)
        if self.labels is None or self.labelled is None:
            return chosen
        own = self.labels.argmax(1) if self.labels.ndim == 2 else self.labels
        return torch.where(self.labelled, own, chosen)
