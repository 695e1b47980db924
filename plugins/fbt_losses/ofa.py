"""OFA: distillation that raises the target class where the teacher is sure of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fbt_plugins import Batch, Knowledge

from .numerics import full_precision, positive, same_shape, the_teacher

READINGS = ("target", "all")


class OFALoss(nn.Module):
    """The loss of OFA-KD (arXiv 2310.19444, eq. 5) without its label term, which is the task loss's business.

    With p = softmax(z / T), target class c and gamma g, mean over the batch:

    - "target", as published: ``-((1 + p_t^c)^g - 1) log p_s^c - sum_{i != c} p_t^i log p_s^i``;
    - "all", as in the authors' code, with every class raised: ``-sum_i ((p_t^i + [i = c])^g - [i = c]) log p_s^i``.

    The two are equal at g = 1, where they are the cross-entropy with the teacher. There is no factor T^2.

    Args:
        gamma: g; above 1 it raises the target class, the more, the surer the teacher is.
        temperature: T, which logits are divided by.
        modulate: which classes are raised: "target" (as published) or "all" (as in the authors' code).

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, gamma: float = 1.0, temperature: float = 1.0, modulate: str = "target") -> None:
        super().__init__()
        if modulate not in READINGS:
            raise ValueError(f"modulate must be 'target' or 'all', not {modulate!r}")
        self.gamma = positive("gamma", gamma)
        self.temperature = positive("temperature", temperature)
        self.modulate = modulate

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        """The target class of soft labels is their largest, and the teacher's where an image has none."""
        given = the_teacher("OFALoss", teacher).logits
        same_shape("logits", student.logits, given, "both models need the same classes")
        target = batch.target_class(given)
        with full_precision(student.logits, given) as (z_s, z_t):
            p_t = (z_t / self.temperature).softmax(1)
            # Not F.one_hot, which reads its argument: that would wait for the device.
            is_target = torch.zeros_like(p_t).scatter(1, target[:, None], 1.0)
            weight = (p_t + is_target) ** self.gamma - is_target
            if self.modulate == "target":
                weight = weight * is_target + p_t * (1 - is_target)
            # log_softmax, not log(softmax): the logarithm of an underflow is where others' NaNs come from.
            return -(weight * (z_s / self.temperature).log_softmax(1)).sum(1).mean()
