"""HCD: logits that complement the teacher's, made of the student's stages and the teacher's feature, teach both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fbt_plugins import Batch, ConfigError, Knowledge, StageSpec, ToMap

from .cross_entropy import CrossEntropyLoss
from .kd import KDLoss
from .numerics import full_precision, not_negative, same_shape, the_teacher, widths
from .ofa_exits import pooled, started
from .stage_loss import stage_numbers


class HCDLoss(nn.Module):
    """Heterogeneous complementary distillation (Xu et al., AAAI 2026, arXiv 2511.10942), as ``stage_loss``.

    Of each stage, f is the student's output behind convolutions and pooling; a mapper makes k sub-logits of f and the
    teacher's feature, ``z_sub = W_2 relu(W_1 [f | f_t])``, and ``z_a = z_sub,a + z_t`` is what is learned from:

    ``sum_a CE(z_a) / k + lambda T^2 sum_a KL(softmax(z_a / T) || softmax(z_s / T)) / k + beta D``, where D is the mean
    over pairs a != b of ``relu(cos(z_sub,a, z_sub,b) - threshold)^2``, the label's class left out of the cosine.

    It is a mean over the batch and a sum over stages. KL trains the student's logits and, through z_a, the mapper and
    the stages as well. The labels' term on z_s is the task loss's business. No official code was at hand; this follows
    the formulas of a public port, which has KD beside it (``KDLoss`` as ``logit_loss``) and takes D of z_a. Its
    projectors are those of OFA's exits for CNNs (depthwise-separable halvings, width the larger of the two models'
    features); stages of other layouts are brought to maps for them, which is ours.

    Args:
        stages: the student's stages that have sub-logits.
        k: how many sub-logits each stage has.
        kl_weight: lambda, the weight of the divergence from the teacher.
        orthogonality_weight: beta, the weight of D.
        threshold: cosines up to this cost nothing.
        temperature: T, which logits are divided by.
        label_smoothing: smoothing of the labels in ``CE(z_a)``; the port has 0.1.

    Raises:
        ValueError: if an argument is out of range.
    """

    autocast = True  # convolutions run in the run's precision, as the student does

    def __init__(
        self,
        stages: Sequence[int] = (1, 2, 3, 4),
        k: int = 4,
        kl_weight: float = 6.0,
        orthogonality_weight: float = 1.0,
        threshold: float = 0.5,
        temperature: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.stages = stage_numbers(stages)
        self.needs = {"student_stages": self.stages, "labels": True, "logits": True}
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        self.k, self.threshold = int(k), threshold
        self.kl_weight = not_negative("kl_weight", kl_weight)
        self.orthogonality_weight = not_negative("orthogonality_weight", orthogonality_weight)
        self.labels, self.kl = CrossEntropyLoss(label_smoothing), KDLoss(temperature)
        self.projectors, self.mappers = nn.ModuleDict(), nn.ModuleDict()

    def setup(
        self, student_specs: Sequence[StageSpec], teacher_specs: Sequence[StageSpec], data_info: Mapping[str, int]
    ) -> None:
        """Builds projectors and mappers.

        Raises:
            ConfigError: if there is no teacher, or a stage is no map.
        """
        of_student, of_teacher = widths("HCDLoss", data_info)
        self.labels.setup(student_specs, teacher_specs, data_info)
        width, logits = max(of_student, of_teacher), self.k * data_info["num_classes"]
        for n in self.stages:
            spec = student_specs[n - 1]
            try:
                to_map = ToMap(spec)
            except ConfigError as error:
                raise ConfigError(f"HCDLoss: stage {n}: {error}") from error
            branch = nn.Sequential(to_map, *pooled(spec.channels, len(student_specs) - n, width))
            mapper = nn.Sequential(nn.Linear(width + of_teacher, of_teacher), nn.ReLU(), nn.Linear(of_teacher, logits))
            self.projectors[str(n)], self.mappers[str(n)] = started(branch), started(mapper)

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        """The class that D leaves out is the label's, of soft labels the largest, or the teacher's where there is none.

        Raises:
            ValueError: if there is no teacher or label.
        """
        if batch.labels is None:
            raise ValueError("HCDLoss needs labels, and this batch has none")
        given = the_teacher("HCDLoss", teacher)
        same_shape("logits", student.logits, given.logits, "both models need the same classes")
        target = batch.target_class(given.logits)
        repeated = Batch(batch.labels.repeat_interleave(self.k, 0))
        values = []
        for n in self.stages:
            projected = self.projectors[str(n)](student.stages[n])
            with full_precision(projected, given.features, given.logits, student.logits) as (f, f_t, z_t, z_s):
                sub = self.mappers[str(n)](torch.cat([f, f_t], 1)).unflatten(1, (self.k, -1))
                # A mean over images and a is what the sum over a, divided by k, is.
                fused = Knowledge(f, (sub + z_t[:, None]).flatten(0, 1))
                received = Knowledge(f, z_s.repeat_interleave(self.k, 0))
                value = self.labels(fused, None, repeated) + self.kl_weight * self.kl(received, fused, repeated)
                values.append(value + self.orthogonality_weight * self._alike(sub, target))
        return torch.stack(values).sum()

    def _alike(self, sub: Tensor, target: Tensor) -> Tensor:
        """D of sub-logits (N, k, C)."""
        classes = torch.arange(sub.shape[2], device=sub.device)
        unit = F.normalize(sub.masked_fill((classes == target[:, None])[:, None], 0.0), dim=2)
        excess = (unit @ unit.transpose(1, 2) - self.threshold).relu().square()
        pairs = excess.sum((1, 2)) - excess.diagonal(dim1=1, dim2=2).sum(1)
        return pairs.mean() / max(self.k * (self.k - 1), 1)
