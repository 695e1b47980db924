"""OFA-KD in full: exits on the student's stages, each trained with OFA's loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from fbt_plugins import Batch, ConfigError, Knowledge, StageSpec, ToMap

from .numerics import the_teacher
from .ofa import OFALoss
from .stage_loss import stage_numbers

FINAL_SIDE = 7
"""Patches are merged while the grid's smaller side is at least twice this; 7 is the side of a CNN's last map at 224."""


def make_exit(spec: StageSpec, left: int, student: int, teacher: int, num_classes: int) -> nn.Module:
    """The branch of one stage, initialised as in OFA-KD's code, but that biases of convolutions begin at 0.

    Args:
        spec: what the stage gives; convolutions follow NCHW, transformer blocks the other layouts.
        left: number of stages behind it.
        student, teacher: widths of the two models' features.
        num_classes: C.

    Returns:
        A module that maps the stage's output to logits (N, C).

    Raises:
        ConfigError: if the stage has tokens of which nobody says where they stand.
    """
    if spec.layout == "NCHW":
        width = max(student, teacher)
        branch: nn.Module = nn.Sequential(*pooled(spec.channels, left, width), nn.Linear(width, num_classes))
    else:
        branch = TokenExit(spec, left, student, num_classes)
    return started(branch)


def started(branch: nn.Module) -> nn.Module:
    """The module, initialised as the authors' code does it, but that biases begin at 0."""
    for module in branch.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return branch


def pooled(channels: int, left: int, width: int) -> list[nn.Module]:
    """Modules that map (N, channels, H, W) to (N, width): one halving for each stage that is left, then the mean.

    The width doubles with each halving, the last has ``width``; where no stage is left, it is a 1x1 convolution.
    """
    widths = [channels * 2**i for i in range(left)] + [width]
    blocks: list[nn.Module] = [_separable(a, b) for a, b in pairwise(widths)]
    return [*(blocks or [nn.Conv2d(channels, width, 1)]), nn.AdaptiveAvgPool2d(1), nn.Flatten()]


def _separable(inputs: int, outputs: int) -> nn.Sequential:
    """Two depthwise-separable convolutions, the first of stride 2."""

    def one(c: int, stride: int) -> list[nn.Module]:
        depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        return [depthwise, nn.Conv2d(inputs, c, 1, bias=False), nn.BatchNorm2d(c), nn.ReLU()]

    return nn.Sequential(*one(inputs, 2), *one(outputs, 1))


class TokenExit(nn.Module):
    """Merges patches, runs as many blocks as stages are left (at least one), and reads the class token or the mean.

    Args:
        spec: what the stage gives.
        left: number of stages behind it.
        width: of everything behind the first merging.
        num_classes: number of logits.
    """

    def __init__(self, spec: StageSpec, left: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.prefix_tokens, self.to_map = spec.prefix_tokens, ToMap(spec)
        merges = max(int(math.log2(min(spec.grid) / FINAL_SIDE)), 0)
        self.merge = nn.Sequential(
            *(_Merging(width if i else spec.channels, width, not i or i < merges - 1) for i in range(merges))
        )
        narrow = spec.channels != width and (spec.prefix_tokens or not merges)  # no merging changes these tokens' width
        self.fit = nn.Linear(spec.channels, width) if narrow else nn.Identity()
        heads = next(h for h in (4, 3, 2, 1) if width % h == 0)
        blocks = [Block(width, heads) for _ in range(max(left, 1))]
        for block in blocks:  # on CPUs torch's fused attention goes back six times slower in bf16 than matmuls do
            block.attn.fused_attn = False  # type: ignore[assignment]
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = (self.merge if len(self.merge) else self.fit)(self.to_map(x).permute(0, 2, 3, 1)).flatten(1, 2)
        if not self.prefix_tokens:
            return self.classifier(self.blocks(tokens).mean(1))
        prefix = self.fit(x[:, : self.prefix_tokens])
        return self.classifier(self.blocks(torch.cat([prefix, tokens], 1))[:, 0])


class _Merging(nn.Module):
    """2 x 2 positions become one: (N, H, W, C) -> (N, H / 2, W / 2, width), zeros beyond an odd edge."""

    def __init__(self, channels: int, width: int, active: bool) -> None:
        super().__init__()
        self.norm, self.reduce = nn.LayerNorm(4 * channels), nn.Linear(4 * channels, width, bias=False)
        self.act = nn.GELU() if active else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
        return self.act(self.reduce(self.norm(x)))


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
        stages: the stages that have an exit; the authors' default is all four.
        gamma, temperature, modulate: as of :class:`OFALoss`, the same for all exits.

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
        self.needs = {"student_stages": self.stages, "logits": True}
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
