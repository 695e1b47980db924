"""What a gate lets through."""

from __future__ import annotations

import torch

from fbt_plugins import Knowledge
from fbt_plugins.distill.edge_gates import agreement


def test_agreement_is_the_part_of_images_with_the_same_class() -> None:
    giver = torch.tensor([[2.0, 1, 0], [0, 5, 1], [1, 0, 3], [9, 0, 0]], requires_grad=True)
    teacher = torch.tensor([[7.0, 1, 0], [0, 1, 5], [0, 0, 1], [1, 0, 0]])  # another class in the second row
    value = agreement(Knowledge(giver, giver), Knowledge(teacher, teacher))
    assert value.item() == 0.75 and not value.requires_grad
