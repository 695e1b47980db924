"""CRD: contrast against memories of the whole data set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fbt_plugins import Batch, Knowledge, StageSpec

from .numerics import all_ranks, full_precision, positive, same_images, the_teacher, widths


class CRDLoss(nn.Module):
    """Contrastive representation distillation (Tian et al., arXiv 1910.10699, eq. 17-19).

    Features of both models go through trained linear embeddings to unit length; one bank per model remembers them for
    all n images of the data set. An embedding v of one model is told apart in the other's bank w: with K negatives,
    ``-log h(v, w_same) - sum_K log(1 - h(v, w_other))``, mean over images, student and teacher as anchor added, where
    ``h = e^(v.w / tau) / (e^(v.w / tau) + Z K / n)``. As in the authors' code Z is a constant for each kind of anchor,
    estimated on the first batch; a bank begins as noise, and a new embedding replaces (1 - ``momentum``) of what is
    remembered of its image, which is then normalised.

    Negatives are other images, none twice for an anchor: one draw of K distances in the data set, counted from each
    image's own position. Their labels are not looked at (the authors draw from other classes). Where the data set has
    no more than ``negatives`` other images, all of them are taken.

    A step compares all anchors with the whole banks, one product, which is cheaper than fetching K rows for each. Banks
    hold 2 n ``dim`` numbers, 1.3 GB for ImageNet-1K at 128, and in training a step copies them. They are kept in a
    run's checkpoints to resume from and in no other file. Processes share what they saw, so that all banks are equal;
    banks begin equal because processes are seeded equally.

    Args:
        dim: width of the trained embeddings.
        negatives: K, the images that each image is told apart from.
        momentum: part of a remembered embedding that an update keeps.
        temperature: tau, which similarities are divided by.

    Raises:
        ValueError: if an argument is out of range.
    """

    stochastic = True  # which negatives

    bank_student: Tensor
    bank_teacher: Tensor
    log_mean: Tensor
    estimated: Tensor

    def __init__(
        self, dim: int = 128, negatives: int = 16384, momentum: float = 0.5, temperature: float = 0.07
    ) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), not {momentum}")
        self.dim, self.negatives = int(positive("dim", dim)), int(positive("negatives", negatives))
        self.momentum, self.temperature = momentum, positive("temperature", temperature)

    def setup(
        self, student_specs: Sequence[StageSpec], teacher_specs: Sequence[StageSpec], data_info: Mapping[str, int]
    ) -> None:
        """Makes embeddings and banks; where ``num_samples`` is not known, empty banks that cannot be used."""
        width_s, width_t = widths("CRDLoss", data_info)
        self.embed_student, self.embed_teacher = nn.Linear(width_s, self.dim), nn.Linear(width_t, self.dim)
        bound = math.sqrt(3 / self.dim)  # of the uniform noise whose rows have unit length on average
        for name in ("bank_student", "bank_teacher"):
            noise = (2 * torch.rand(data_info.get("num_samples", 0), self.dim) - 1) * bound
            self.register_buffer(name, noise, persistent=False)
        self.register_buffer("log_mean", torch.zeros(2), persistent=False)
        self.register_buffer("estimated", torch.zeros((), dtype=torch.bool), persistent=False)

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        """In training mode it also updates the banks.

        Raises:
            ValueError: if there is no teacher, no ``batch.index``, or no bank of 2 or more images.
        """
        given = the_teacher("CRDLoss", teacher).features
        same_images(student.features, given)
        index, size = batch.index, len(self.bank_student)
        if index is None:
            raise ValueError(
                "CRDLoss needs batch.index, each image's position in the data set, and this batch has none"
            )
        if size < 2:
            raise ValueError(f"CRDLoss needs data_info['num_samples'] of at least 2 training images, not {size}")
        with full_precision(student.features, given) as (f_s, f_t):
            v_s, v_t = F.normalize(self.embed_student(f_s), dim=1), F.normalize(self.embed_teacher(f_t), dim=1)
            count = min(self.negatives, size - 1)
            steps = torch.randperm(size - 1, device=index.device)[:count] + 1
            chosen = torch.cat([index[:, None], (index[:, None] + steps) % size], 1)
            scores = [self._scores(v_s, self.bank_teacher, chosen), self._scores(v_t, self.bank_student, chosen)]
            if self.training:
                self._remember(v_s, v_t, index, scores)
            # logit of h: Z is n times the mean of e^(v.w / tau), so that n cancels.
            return sum(_nce(s - m - math.log(count)) for s, m in zip(scores, self.log_mean, strict=True))  # type: ignore[return-value]

    def _scores(self, anchors: Tensor, bank: Tensor, chosen: Tensor) -> Tensor:
        """(N, 1 + K) similarities over tau; the positive's is the first."""
        # A copy: backward needs the bank as it was before this step's update.
        remembered = bank.clone() if self.training else bank
        return (anchors @ remembered.T).gather(1, chosen) / self.temperature

    @torch.no_grad()
    def _remember(self, v_s: Tensor, v_t: Tensor, index: Tensor, scores: list[Tensor]) -> None:
        means = [s.logsumexp(1, keepdim=True) - math.log(s.shape[1]) for s in scores]
        seen, index = all_ranks(torch.cat([v_s, v_t, *means], 1)), all_ranks(index)
        first = seen[:, -2:].logsumexp(0) - math.log(len(seen))
        self.log_mean.copy_(torch.where(self.estimated, self.log_mean, first))
        self.estimated.fill_(True)
        # An image that is there twice, as a sampler may pad, would be written in any order: the last counts.
        order = torch.arange(len(index), device=index.device)
        last = index.new_zeros(len(self.bank_student)).scatter_reduce(0, index, order, "amax")[index]
        for bank, new in ((self.bank_student, seen[:, : self.dim]), (self.bank_teacher, seen[:, self.dim : -2])):
            moved = self.momentum * bank[index] + (1 - self.momentum) * new[last]
            bank.index_copy_(0, index, F.normalize(moved, dim=1))


def _nce(logits: Tensor) -> Tensor:
    """``-log h`` of the first column and ``-log(1 - h)`` of all others; sum over columns, mean over rows."""
    return (F.softplus(-logits[:, 0]) + F.softplus(logits[:, 1:]).sum(1)).mean()
