"""DIST: what correlates is enough."""

from __future__ import annotations

from torch import Tensor, nn

from fbt_plugins import Batch, Knowledge

from .numerics import full_precision, not_negative, positive, same_shape, the_teacher

EPS = 1e-8
"""As in the authors' code, on the product of both norms: a row or column without spread correlates with nothing."""


class DISTLoss(nn.Module):
    """``T^2 (beta L_inter + gamma L_intra)`` (inter- and intra-class relation; Huang et al., arXiv 2205.10536).

    With Y = softmax(z / T), (N, C), L_inter is 1 minus the Pearson correlation of a row of Y_s and the same row of Y_t,
    mean over images, and L_intra the same of columns, mean over classes. Other scales and offsets of probabilities cost
    nothing, which suits a student that cannot match a strong teacher exactly. Columns are those of one process's batch;
    in a batch of one image nothing correlates over images, and L_intra is 1, without gradient.

    Args:
        beta: weight of the relation between classes, within an image.
        gamma: weight of the relation between images, within a class.
        temperature: T, which logits are divided by. It, its factor T^2 and all defaults are as in OFA-KD's comparisons
            (arXiv 2310.19444).

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__()
        self.beta, self.gamma = not_negative("beta", beta), not_negative("gamma", gamma)
        self.temperature = positive("temperature", temperature)

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        given = the_teacher("DISTLoss", teacher).logits
        same_shape("logits", student.logits, given, "both models need the same classes")
        with full_precision(student.logits, given) as (z_s, z_t):
            y_s, y_t = (z_s / self.temperature).softmax(1), (z_t / self.temperature).softmax(1)
            inter, intra = 1 - _correlation(y_s, y_t).mean(), 1 - _correlation(y_s.T, y_t.T).mean()
            return (self.beta * inter + self.gamma * intra) * self.temperature**2


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of the rows of two matrices."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + EPS)
