"""What losses of stages share: which stages, and one comparison for each of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fbt_plugins import Batch, ConfigError, Knowledge, StageSpec

from .numerics import full_precision, the_teacher


class StageLoss(nn.Module):
    """The sum over stages of a comparison between the same stage of two models.

    Args:
        stages: their numbers, from 1.

    Raises:
        ValueError: if they are none, or one is there twice.
    """

    def __init__(self, stages: Sequence[int]) -> None:
        super().__init__()
        self.stages = stage_numbers(stages)
        self.needs = {"stages": self.stages}
        self.comparisons = nn.ModuleDict()

    @abstractmethod
    def compare(self, student: StageSpec, teacher: StageSpec, number: int) -> nn.Module:
        """A module that maps what the two stages of a number give, each in its own layout, to a scalar."""

    def setup(
        self, student_specs: Sequence[StageSpec], teacher_specs: Sequence[StageSpec], data_info: Mapping[str, int]
    ) -> None:
        """Builds the comparisons.

        Raises:
            ConfigError: if there is no teacher, or two stages cannot be compared.
        """
        name = type(self).__name__
        if not teacher_specs:
            raise ConfigError(f"{name} compares two models; as a task loss use CrossEntropyLoss")
        for n in self.stages:
            try:
                self.comparisons[str(n)] = self.compare(student_specs[n - 1], teacher_specs[n - 1], n)
            except ConfigError as error:
                raise ConfigError(f"{name}: stage {n}: {error}") from error

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        given = the_teacher(type(self).__name__, teacher)
        values = []
        for n in self.stages:
            with full_precision(student.stages[n], given.stages[n]) as (x, y):
                values.append(self.comparisons[str(n)](x, y))
        return torch.stack(values).sum()


def stage_numbers(stages: Sequence[int]) -> tuple[int, ...]:
    """Stage numbers as a tuple.

    Raises:
        ValueError: if there are none, one is no number from 1, or one is there twice.
    """
    fit = isinstance(stages, Sequence) and len(stages) > 0
    if not fit or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in stages):
        raise ValueError(f"stages must be numbers from 1, such as (3, 4), not {stages!r}")
    if len(set(stages)) < len(stages):
        raise ValueError(f"stages must be different numbers, not {stages!r}")
    return tuple(stages)


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """(N, C, H, W) -> (N, C, h, w), bilinear; every position of a map that shrinks counts."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False, antialias=True)
