"""Students that are better and worse than others, as a loss should see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..models.knowledge import Batch, Knowledge
from ..models.shapes import StageSpec
from .samples import CLASSES, EXTRA, mapped, random_tensors, tensors

BOUND = 5.0
"""A value that falls by so much below 0, and ever faster, has no lower bound."""
STEPS = 14


def knowledge_of(specs: Sequence[StageSpec], seed: int, size: int) -> Knowledge:
    """Of a model whose parts tell the same about an image: its stages' maps, features and logits are of one origin.

    Args:
        specs: of its stages, maps (N, C, H, W).
        seed: of the images.
        size: N; features are 8 wide.
    """
    make, fixed = random_tensors(seed), random_tensors(100)
    features = make(size, 8)
    stages = {}
    for number, spec in enumerate(specs, 1):
        h, w = spec.grid
        made = features @ fixed(8, spec.channels * h * w) / 3
        stages[number] = made.unflatten(1, (spec.channels, h, w)) + 0.1 * make(size, spec.channels, h, w)
    logits = features @ fixed(8, CLASSES)
    return Knowledge(features, logits, stages, {name: logits + 0.1 * make(size, CLASSES) for name in EXTRA})


Value = Callable[..., Tensor]


@torch.no_grad()
def better_and_worse(
    value: Value, loss: nn.Module, specs: Sequence[StageSpec], seed: int, size: int, worse: str
) -> tuple[float, float]:
    """Values of a loss for a student that knows what the teacher knows, and for a worse one.

    Args:
        value: calls the loss.
        loss: without parameters that are to be trained first.
        specs: of both models.
        seed: of the images.
        size: how many.
        worse: "of other images", what the teacher knows of the next image of the batch; or "random".
    """
    teacher = knowledge_of(specs, seed, size)
    other = (
        mapped(teacher, lambda x: x.roll(1, 0)) if worse == "of other images" else knowledge_of(specs, seed + 50, size)
    )
    batch = Batch(teacher.output.argmax(1), torch.arange(size))
    with torch.enable_grad():  # some losses use gradients themselves
        pair = [float(value(batch, size=size, knowledge=(k, teacher), loss=loss).detach()) for k in (teacher, other)]
    return pair[0], pair[1]


def trained_down(value: Value, loss: nn.Module, student: Knowledge, teacher: Knowledge) -> tuple[float, float, float]:
    """Values of a loss at the beginning, half way and at the end of a training of its own parameters and the student.

    Args:
        value: calls the loss.
        loss: with parameters; they are trained.
        student, teacher: what two models know about the same images.
    """
    student = mapped(student, lambda x: x.clone().requires_grad_())
    images = len(teacher.features)
    batch = Batch(teacher.output.argmax(1), torch.arange(images))
    optimizer = torch.optim.Adam([*(p for p in loss.parameters() if p.requires_grad), *tensors(student)], 0.1)
    values = []
    for step in range(STEPS + 1):
        optimizer.zero_grad()
        current = value(batch, size=images, knowledge=(student, teacher), loss=loss, seed=step)
        values.append(float(current.detach()))
        current.backward()
        optimizer.step()
    return values[0], values[STEPS // 2], values[STEPS]
