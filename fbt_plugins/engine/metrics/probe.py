"""A linear probe on frozen features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.registry import METRICS
from torch import Tensor
from torch.nn import functional as F

from ...errors import ConfigError, FBTError
from .features import FeatureMetric, Seen


@METRICS.register_module()
class LinearProbe(FeatureMetric):
    """Share of labelled images that a linear classifier on frozen features classifies rightly, in percent.

    As "student_probe" and so on. The classifier is a logistic regression, fitted with L-BFGS to the end, on features
    that are standardised by the images it is fitted to; ``C`` means what it does in scikit-learn. Without a bank it is
    cross-validated: the labelled images of the split are divided into ``folds`` parts with as many of each class, and
    each part is classified by what was fitted to the others. Nothing is random.

    Args:
        C: inverse of the weight of the penalty; larger fits closer.
        folds: parts of the cross-validation, without a bank.
        steps: most steps of L-BFGS.
        bank: see :class:`FeatureMetric`.
    """

    key, title = "probe", "linear probe"
    needs_labels = True

    def __init__(self, C: float = 1.0, folds: int = 5, steps: int = 200, bank: Mapping[str, Any] | None = None) -> None:
        super().__init__(bank)
        if not C > 0 or folds < 2 or steps < 1:
            raise ConfigError(
                f"LinearProbe: C must be above 0, folds 2 or more and steps 1 or more, not {C}, {folds} and {steps}"
            )
        self.C, self.folds, self.steps = float(C), int(folds), int(steps)

    def measure(self, seen: Seen) -> dict[str, float]:
        own = self.labelled(seen)
        return {name: self._share(features, own.labels, self.banked(name)) for name, features in own.features.items()}

    def _share(self, features: Tensor, labels: Tensor, bank: tuple[Tensor, Tensor] | None) -> float:
        if bank is not None:
            return 100 * float((self._classify(*bank, features) == labels).double().mean())
        order = labels.argsort(stable=True)
        fold = torch.empty_like(labels)
        fold[order] = torch.arange(len(labels)) % self.folds
        right = [
            self._classify(features[fold != i], labels[fold != i], features[fold == i]) == labels[fold == i]
            for i in range(min(self.folds, len(labels)))
        ]
        return 100 * float(torch.cat(right).double().mean())

    @torch.enable_grad()
    def _classify(self, features: Tensor, labels: Tensor, unknown: Tensor) -> Tensor:
        """Fits to features (N, D) and labels (N,), and gives the classes of others."""
        if len(labels.unique()) < 2:
            raise FBTError("LinearProbe needs labelled images of two classes or more to fit a classifier to")
        mean, std = features.mean(0), features.std(0).clamp(min=1e-6)
        x, unknown = (features - mean) / std, (unknown - mean) / std
        classes = int(labels.max()) + 1
        weight = torch.zeros(classes, x.shape[1], requires_grad=True)
        bias = torch.zeros(classes, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=self.steps, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(F.linear(x, weight, bias), labels)
            value = value + weight.square().sum() / (2 * self.C * len(labels))
            value.backward()
            return value

        optimizer.step(loss)  # type: ignore[arg-type]
        return F.linear(unknown, weight, bias).argmax(1).detach()
