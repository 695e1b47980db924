"""k nearest neighbours on frozen features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.registry import METRICS
from torch import Tensor
from torch.nn import functional as F

from ...errors import ConfigError
from .features import FeatureMetric, Seen

_ROWS = 1024


@METRICS.register_module()
class KNN(FeatureMetric):
    """Share of labelled images that their nearest neighbours among other labelled images classify rightly, in percent.

    As "student_knn" and so on. The vote of DINO (arXiv 2104.14294, section 4.1) and InstDisc (arXiv 1805.01978):
    cosine similarities s of features, and each of the k nearest votes for its class with exp(s / temperature). Without
    a bank each labelled image is left out once, and looks for its neighbours among the others of its split.

    Args:
        k: how many neighbours vote; all there are where they are fewer.
        temperature: what similarities are divided by before they vote.
        bank: see :class:`FeatureMetric`.
    """

    key = "knn"
    needs_labels = True

    def __init__(self, k: int = 20, temperature: float = 0.07, bank: Mapping[str, Any] | None = None) -> None:
        super().__init__(bank)
        if k < 1 or not temperature > 0:
            raise ConfigError(f"KNN: k must be 1 or more and temperature above 0, not {k} and {temperature}")
        self.k, self.temperature, self.title = int(k), float(temperature), f"{int(k)}-NN"

    def measure(self, seen: Seen) -> dict[str, float]:
        own = self.labelled(seen)
        return {name: self._share(features, own.labels, self.banked(name)) for name, features in own.features.items()}

    def _share(self, features: Tensor, labels: Tensor, bank: tuple[Tensor, Tensor] | None) -> float:
        others, classes = (features, labels) if bank is None else bank
        weights, rows = nearest(features, others, self.k, leave_out=bank is None)
        votes = torch.zeros(len(labels), int(classes.max()) + 1)
        votes.scatter_add_(1, classes[rows], (weights / self.temperature).exp())
        return 100 * float((votes.argmax(1) == labels).double().mean())


def nearest(features: Tensor, others: Tensor, k: int, leave_out: bool) -> tuple[Tensor, Tensor]:
    """The most similar of some images, by the cosine of features.

    Args:
        features: (N, D).
        others: (M, D) to choose from.
        k: how many; fewer where there are not so many.
        leave_out: both are the same images, none of which is its own neighbour.

    Returns:
        (N, k) similarities, the largest first, and (N, k) rows of ``others``.
    """
    x, bank = F.normalize(features, dim=1), F.normalize(others, dim=1)
    k = min(k, len(bank) - leave_out)
    parts = []
    for start in range(0, len(x), _ROWS):
        similar = x[start : start + _ROWS] @ bank.T
        if leave_out:
            here = torch.arange(len(similar))
            similar[here, start + here] = -torch.inf
        parts.append(similar.topk(k, dim=1))
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])
