"""DeiT's distillation through a token: the class head learns from labels, the distillation head from the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fbt_plugins import Batch, Knowledge, StageSpec

from .cross_entropy import CrossEntropyLoss
from .kd import KDLoss
from .numerics import full_precision, positive, same_shape, the_teacher

TYPES = ("hard", "soft")


class DeiTLoss(nn.Module):
    """``(1 - alpha) CE(z_class, label) + alpha D(z_distillation, z_t)``, mean over the batch (arXiv 2012.12877).

    - "hard", eq. 3: D is the cross-entropy with the teacher's decision ``argmax z_t``;
    - "soft", eq. 2: D is ``tau^2 KL(softmax(z_t / tau) || softmax(z_distillation / tau))``. The authors' code divides
      it by the number of classes as well.

    For a student with a distillation head, such as timm's ``deit_tiny_distilled_patch16_224``, as ``logit_loss`` of
    ``teacher_to_student`` and with ``task_loss=None``: the labels are in here, and the logits that such a model gives
    are the mean of its two heads, which a task loss would train with the labels too.

    Args:
        distillation_type: D: "hard" (cross-entropy with the teacher's class) or "soft" (KL divergence).
        alpha: the teacher's share; 0.5 is the code's default and eq. 3 (the paper's soft runs: 0.1, with tau 3).
        tau: temperature of logits; for "soft" alone.
        label_smoothing: smoothing of the labels, as in :class:`CrossEntropyLoss`; DeiT's recipe has 0.1.

    Raises:
        ValueError: if an argument is out of range.
    """

    needs = {"student_extra": ("class_logits", "distillation_logits"), "labels": True}  # noqa: RUF012 - read by edges, never written

    def __init__(
        self, distillation_type: str = "hard", alpha: float = 0.5, tau: float = 1.0, label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        if distillation_type not in TYPES:
            raise ValueError(f"distillation_type must be 'hard' or 'soft', not {distillation_type!r}")
        if not 0 < alpha < 1:  # at 0 or 1 one of the heads would stay untrained
            raise ValueError(f"alpha must be between 0 and 1, not {alpha}")
        self.alpha, self.hard = float(alpha), distillation_type == "hard"
        self.labels = CrossEntropyLoss(label_smoothing)
        self.soft = KDLoss(positive("tau", tau))

    def setup(
        self, student_specs: Sequence[StageSpec], teacher_specs: Sequence[StageSpec], data_info: Mapping[str, int]
    ) -> None:
        self.labels.setup(student_specs, teacher_specs, data_info)

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        """Labels as in :class:`CrossEntropyLoss`.

        Raises:
            ValueError: if there is no teacher or label.
        """
        given = the_teacher("DeiTLoss", teacher)
        of_class = Knowledge(student.features, student.extra["class_logits"])
        of_teacher = Knowledge(student.features, student.extra["distillation_logits"])
        same_shape("logits", of_teacher.logits, given.logits, "both models need the same classes")
        told = self._decided(of_teacher, given) if self.hard else self.soft(of_teacher, given, batch)
        return (1 - self.alpha) * self.labels(of_class, None, batch) + self.alpha * told

    @staticmethod
    def _decided(student: Knowledge, teacher: Knowledge) -> Tensor:
        with full_precision(student.logits, teacher.logits) as (logits, given):
            return F.cross_entropy(logits, given.argmax(1))
