"""OFA-KD in full: exits on the student's stages, each trained with OFA's loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fbt_plugins import Batch, ConfigError, Knowledge, StageSpec

from .exits import make_exit
from .numerics import the_teacher
from .ofa import OFALoss
from .stage_loss import stage_numbers


class OFAExitsLoss(nn.Module):
    """The sum over stages of :class:`OFALoss` between an exit of the student and the teacher's logits.

    OFA-KD (arXiv 2310.19444, section 3.2 and eq. 5). As ``stage_loss``; OFA on the logits themselves is ``OFALoss`` as
    ``logit_loss``, and the labels are the task loss's business. Only training has exits: no file of a student has them.

    An exit is a branch from a stage to logits, as in the authors' code: behind NCHW a depthwise-separable downsampling
    block for each stage that is left (at stage 4 a 1x1 convolution), then the mean; behind other layouts patches merged
    down to 7 x 7, a transformer block for each stage that is left (at least one), then the class token or the mean; a
    linear layer last. What differs: odd grids are padded; a width that is not the features' own is changed by a linear
    layer where no merging does it; among several prefix tokens the first is read; heads of a width that 4 does not
    divide are fewer.

    Args:
        stages: that have an exit; the authors' default is all four.
        gamma, temperature, modulate: of :class:`OFALoss`, one for all exits.

    Raises:
        ValueError: if an argument is out of range.
    """

    autocast = True  # exits are the larger part of a step

    def __init__(
        self,
        stages: Sequence[int] = (1, 2, 3, 4),
        gamma: float = 1.0,
        temperature: float = 1.0,
        modulate: str = "target",
    ) -> None:
        super().__init__()
        self.stages = stage_numbers(stages)
        self.needs = {"student_stages": self.stages}
        self.loss = OFALoss(gamma, temperature, modulate)
        self.exits = nn.ModuleDict()

    def setup(
        self, student_specs: Sequence[StageSpec], teacher_specs: Sequence[StageSpec], data_info: Mapping[str, int]
    ) -> None:
        """Builds the exits.

        Raises:
            ConfigError: if there is no teacher, or a stage cannot have an exit.
        """
        if "teacher_features" not in data_info:
            raise ConfigError("OFAExitsLoss compares two models; as a task loss use CrossEntropyLoss")
        widths = data_info["student_features"], data_info["teacher_features"]
        for n in self.stages:
            try:
                branch = make_exit(student_specs[n - 1], len(student_specs) - n, *widths, data_info["num_classes"])
            except ConfigError as error:
                raise ConfigError(f"OFAExitsLoss: stage {n}: {error}") from error
            self.exits[str(n)] = branch

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        given = the_teacher("OFAExitsLoss", teacher)
        values = []
        for n in self.stages:
            exit_logits = self.exits[str(n)](student.stages[n])
            values.append(self.loss(Knowledge(student.features, exit_logits), given, batch))
        return torch.stack(values).sum()
