"""What metrics of features share: the features of every image, and a bank of labelled images."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from torch import Tensor

from ...errors import FBTError

PREFIX = "features/"
"""What the names of features begin with in a sample."""


class Seen(NamedTuple):
    """What models know about some images.

    Attributes:
        features: (N, D) by model.
        labels: (N,), -1 of an image without one.
        positions: (N,), in their data set.
    """

    features: Mapping[str, Tensor]
    labels: Tensor
    positions: Tensor


class FeatureMetric(BaseMetric):
    """Collects the features of all images, float32, in the memory of each process.

    Args:
        bank: of a metric that compares with labelled images: a loader's config, as ``val_dataloader`` is one, of those;
            None takes the validation images themselves.

    Attributes:
        key: what its figures' names end in.
        title: what people call them.
        wants: what it is told of each batch.
        bank_loader: of the bank; the run opens it.
    """

    default_prefix = ""
    wants = "features"
    key: str
    title: str
    needs_teacher = False

    def __init__(self, bank: Mapping[str, Any] | None = None) -> None:
        super().__init__(collect_device="cpu", prefix="")
        self.bank = bank
        self.bank_loader: Any = None
        self._bank: dict[str, Tensor] = {}
        self._bank_labels = torch.empty(0)

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Tensor]]) -> None:
        """Takes ``{"labels": (N,), "index": (N,), "features/MODEL": (N, D), ...}``; one result per image."""
        for sample in data_samples:
            columns = {
                name.removeprefix(PREFIX): value.float().cpu().numpy()
                for name, value in sample.items()
                if name.startswith(PREFIX)
            }
            for i, (label, index) in enumerate(zip(sample["labels"].tolist(), sample["index"].tolist(), strict=True)):
                self.results.append((label, index, {name: rows[i] for name, rows in columns.items()}))

    def compute_metrics(self, results: list[tuple[int, int, dict[str, np.ndarray]]]) -> dict[str, float]:
        labels, index, rows = zip(*results, strict=True)
        features = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
        for name, values in features.items():
            if not values.isfinite().all():
                raise FBTError(f"{type(self).__name__}: features of the {name} are not finite")
        found = self.measure(Seen(features, torch.tensor(labels), torch.tensor(index)))
        return {f"{name}_{self.key}": value for name, value in found.items()}

    @abstractmethod
    def measure(self, seen: Seen) -> dict[str, float]:
        """The figure of each model, in percent."""

    def look_at_bank(self, distiller: Any, names: Sequence[str]) -> Seen:
        """What some of a distiller's models, which is in eval mode, know about the bank's labelled images."""
        collected: list[dict[str, Tensor]] = []
        for batch in self.bank_loader or ():
            sample = distiller.sample(batch, names, {self.wants})
            collected.append({name: value.float().cpu() for name, value in sample.items() if name.startswith(PREFIX)})
            collected[-1]["labels"], collected[-1]["index"] = sample["labels"].cpu(), sample["index"].cpu()
        whole = {name: torch.cat([part[name] for part in collected]) for name in collected[0]}
        labels, index = whole.pop("labels"), whole.pop("index")
        seen = Seen({name.removeprefix(PREFIX): value for name, value in whole.items()}, labels, index)
        return self.labelled(seen)

    def fill_bank(self, seen: Seen) -> None:
        """Takes what models know about the bank's images; what is known of other models stays."""
        self._bank_labels = seen.labels
        self._bank |= seen.features

    def labelled(self, seen: Seen) -> Seen:
        """The images that have a label.

        Raises:
            FBTError: if none has.
        """
        here = seen.labels >= 0
        if not here.any():
            raise FBTError(f"{type(self).__name__} needs labels, and no image of this split has one")
        return Seen(
            {name: value[here] for name, value in seen.features.items()}, seen.labels[here], seen.positions[here]
        )

    def banked(self, name: str) -> tuple[Tensor, Tensor] | None:
        """A model's features of the bank's images, and their labels; None without a bank."""
        return None if self.bank is None else (self._bank[name], self._bank_labels)
