"""Which positions of a student's stage learn from which of the teacher's, and whether that is right."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..models.knowledge import Knowledge
from ..models.shapes import StageSpec
from .positions import misplaced, tokens_of, used

MOST = 64
"""Positions of a teacher's stage; one of more is not looked at."""


def wrong_positions(
    value: Callable[[Knowledge, Knowledge], Tensor],
    student: Knowledge,
    teacher: Knowledge,
    specs: tuple[StageSpec, StageSpec],
    numbers: tuple[int, int],
) -> str | None:
    """What a loss does wrong between two stages, as the rest of a sentence whose subject it is; None if nothing.

    Args:
        value: of the loss, the same for the same knowledge.
        student, teacher: what they know.
        specs: of the student's and of the teacher's stage.
        numbers: of these stages.
    """
    (own, other), (target, source) = numbers, specs
    count = math.prod(source.grid)

    def gradient(stage: Tensor) -> Tensor:
        """(positions, channels), of the first image's student."""
        given = student.stages[own].detach().clone().requires_grad_()
        knows = Knowledge(student.features, student.logits, {**student.stages, own: given}, student.extra)
        told = Knowledge(teacher.features, teacher.logits, {**teacher.stages, other: stage}, teacher.extra)
        (found,) = torch.autograd.grad(value(knows, told), given, allow_unused=True)
        return tokens_of(torch.zeros_like(given) if found is None else found, target)[0]

    plain = gradient(teacher.stages[other])
    learning = used(plain.abs())
    if 0 < learning < max(len(plain) // 4, 1):
        return f"teaches {learning} of the {len(plain)} positions of the student's stage {own}, and the others nothing"
    if count > MOST or not learning:
        return None
    rows = []
    for position in range(count):
        changed = teacher.stages[other].clone()
        noise = torch.randn(source.channels, generator=torch.Generator().manual_seed(position))
        tokens_of(changed, source)[0, position] += noise  # a view, in all layouts
        rows.append((gradient(changed) - plain).abs().mean(1))
    seen = torch.stack(rows)
    problem = misplaced(seen, source, target) if bool(seen.any()) else None
    return problem and problem.replace("what arrives", f"the teacher's stage {other}").replace(
        "what it gives", f"the student's stage {own}"
    )
