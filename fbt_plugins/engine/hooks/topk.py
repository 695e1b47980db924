"""Accuracy of every model under its own name, and the loop that measures it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.registry import METRICS
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ...errors import ConfigError, FBTError, repeated
from ..metrics import fill_banks, wants
from ..training_run import unwrapped


@METRICS.register_module()
class TopK(BaseMetric):
    """Share of images whose label is among a model's k largest logits, in percent, as "student_top1" and so on.

    Images without a label do not count.

    Args:
        topk: the values of k, 1 among them; those above the number of classes are left out.
    """

    default_prefix = ""
    key, title = "top1", "top-1"
    wants = "logits"
    needs_labels = True

    def __init__(self, topk: Sequence[int] = (1, 5)) -> None:
        super().__init__(collect_device="cpu", prefix="")
        self.topk = tuple(topk)
        if 1 not in self.topk or min(self.topk) < 1 or repeated(self.topk):
            raise ConfigError(f"TopK: topk must be different whole numbers above 0, 1 among them, not {topk}")

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Tensor]]) -> None:
        """Takes ``{"labels": (N,), model: (N, classes), ...}``; one result per image: padding is trimmed."""
        for sample in data_samples:
            labels = sample["labels"]
            columns: dict[str, list[bool]] = {}
            counts = (labels >= 0).tolist()
            for name, logits in sample.items():
                if name in ("labels", "index") or "/" in name:  # what metrics of features are told besides
                    continue
                kept = [k for k in self.topk if k <= logits.shape[1]]
                best = logits.topk(max(kept), dim=1).indices == labels[:, None]
                columns |= {f"{name}_top{k}": best[:, :k].any(1).tolist() for k in kept}
            rows = zip(*columns.values(), strict=True) if columns else [()] * len(counts)
            self.results.extend(
                dict(zip(columns, row, strict=True)) if counted else None
                for row, counted in zip(rows, counts, strict=True)
            )

    def compute_metrics(self, results: list[dict[str, bool] | None]) -> dict[str, float]:
        counted = [result for result in results if result is not None]
        if not counted:
            raise FBTError("TopK needs labels, and no image of this split has one")
        return {key: 100 * sum(r[key] for r in counted) / len(counted) for key in counted[0]}


def evaluate(model: nn.Module, loader: DataLoader[Any], evaluator: Evaluator, names: Iterable[str]) -> dict[str, float]:
    """Metrics of some of a distiller's models over a data set, in eval mode.

    Args:
        model: the distiller, or a wrapper around it.
        loader: of the data set.
        evaluator: mmengine's, with the metrics.
        names: of the models.
    """
    distiller = unwrapped(model)
    was_training, wanted = distiller.training, list(names)
    distiller.eval()
    told = wants(evaluator.metrics)
    with torch.no_grad():
        fill_banks(evaluator.metrics, distiller, wanted)
        for batch in loader:
            evaluator.process([distiller.sample(batch, wanted, told)], batch)
    distiller.train(was_training)
    return evaluator.evaluate(len(loader.dataset))  # type: ignore[arg-type]
