"""What metrics of features share: the features of every image, and a bank of labelled images."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dist import collect_results, get_world_size
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


Row = tuple[int, int, dict[str, np.ndarray]]
"""An image: its label, its position, and by model its features."""


def _rows(sample: Mapping[str, Tensor]) -> list[Row]:
    columns = {
        name.removeprefix(PREFIX): value.float().cpu().numpy()
        for name, value in sample.items()
        if name.startswith(PREFIX)
    }
    numbers = zip(sample["labels"].tolist(), sample["index"].tolist(), strict=True)
    return [
        (label, index, {name: rows[i] for name, rows in columns.items()}) for i, (label, index) in enumerate(numbers)
    ]


def _seen(rows: Sequence[Row]) -> Seen:
    labels, index, features = zip(*rows, strict=True)
    stacked = {name: torch.from_numpy(np.stack([row[name] for row in features])) for name in features[0]}
    return Seen(stacked, torch.tensor(labels), torch.tensor(index))


class FeatureMetric(BaseMetric):
    """Collects the features of all images, float32, in the memory of each process.

    Args:
        bank: the labelled images that it compares with: a loader's config, as ``val_dataloader`` is one. None takes
            the validation images themselves.

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
            self.results.extend(_rows(sample))

    def compute_metrics(self, results: list[Row]) -> dict[str, float]:
        seen = _seen(results)
        for name, values in seen.features.items():
            if not values.isfinite().all():
                why = ": training diverged; lower the learning rate (fbt distill --lr)" if name == "student" else ""
                raise FBTError(f"{type(self).__name__}: features of the {name} are not finite{why}")
        return {f"{name}_{self.key}": value for name, value in self.measure(seen).items()}

    @abstractmethod
    def measure(self, seen: Seen) -> dict[str, float]:
        """The figure of each model, in percent."""

    def look_at_bank(self, distiller: Any, names: Sequence[str]) -> Seen | None:
        """What some of a distiller's models, which is in eval mode, know about the bank's labelled images.

        All processes call it, and each looks at its part; only the first gets the whole.
        """
        rows = [row for batch in self.bank_loader for row in _rows(distiller.sample(batch, names, {self.wants}))]
        found = collect_results(rows, len(rows) * get_world_size(), "cpu")
        if found is None:
            return None
        once = {row[1]: row for row in found}  # some are shown twice, so that all processes have equally many
        return self.labelled(_seen([once[position] for position in sorted(once)]))

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
