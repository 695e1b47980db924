"""BKD: a binary question for each class."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fbt_plugins import Batch, Knowledge

from .numerics import full_precision, same_shape, the_teacher


class BKDLoss(nn.Module):
    """``-(p_t log s + (1 - p_t) log(1 - s))``, mean over batch and classes; p_t = softmax(z_t), s = sigmoid(z_s).

    Binary cross-entropy of each class of the student with the teacher's probability of it, for recipes whose task loss
    is binary cross-entropy. It follows the released code of VanillaKD (arXiv 2305.15781, ``losses/bkd.py``, where it is
    named a KL divergence: the teacher's entropy, by which the two differ, has no gradient). It is not 0 for two equal
    models, and as a mean over classes its gradients are C times smaller than KD's: weight it accordingly.
    """

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        given = the_teacher("BKDLoss", teacher).logits
        same_shape("logits", student.logits, given, "both models need the same classes")
        with full_precision(student.logits, given) as (z_s, z_t):
            return F.binary_cross_entropy_with_logits(z_s, z_t.softmax(1))
