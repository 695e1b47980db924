"""How alike the stages of teacher, fusion models and student are: linear CKA on validation images.

CKA(X, Y) = HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y)) of two stages' activations for the same images (Kornblith et al.,
arXiv 1905.00414), with the unbiased estimator of HSIC averaged over batches (Nguyen et al., arXiv 2010.15327, eq. 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import isfinite
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from ..distill.distiller import Distiller
from ..distill.edge import STUDENT, TEACHER
from ..distill.needs import start_of
from ..errors import ConfigError

SMALLEST_BATCH = 4
"""The estimator has n - 3 in its denominator."""


def centered_gram(activations: Tensor) -> Tensor:
    """A stage's Gram matrix without its diagonal, centred so that the mean over all pairs of images is unbiased.

    With K = X X^T and a diagonal of zeros, for i != j (Székely and Rizzo, arXiv 1310.2926, definition 2)::

        K_ij - sum_l K_il / (n - 2) - sum_k K_kj / (n - 2) + sum_kl K_kl / ((n - 1) (n - 2))

    The sum of the products of two such matrices' entries, over n (n - 3), is HSIC_1 of arXiv 2010.15327.

    Args:
        activations: (n, ...), one row per image whatever the layout, at least 4.

    Returns:
        (n, n) in float64.
    """
    n = len(activations)
    x = activations.flatten(1)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    x = x - x.mean(0)  # which changes nothing but the rounding errors
    gram = (x @ x.T).double().fill_diagonal_(0)
    sums = gram.sum(0) / (n - 2)
    return (gram - sums[:, None] - sums[None] + sums.sum() / (n - 1)).fill_diagonal_(0)


class MinibatchCKA:
    """Linear CKA between all pairs of some stages, batch by batch: HSIC's mean over the batches goes into the ratio.

    Batches of all sizes have the same weight, as each is an unbiased estimate of its own.
    """

    def __init__(self) -> None:
        self._hsic: Tensor | float = 0.0

    def add(self, stages: Mapping[str, Tensor]) -> None:
        """Takes a batch.

        Args:
            stages: (n, ...) of each stage by name, of the same n images, the same names each time.
        """
        grams = torch.stack([centered_gram(x).flatten() for x in stages.values()])
        n = len(next(iter(stages.values())))
        self._hsic = self._hsic + grams @ grams.T / (n * (n - 3))

    def result(self) -> Tensor:
        """(stages, stages), in the order of their names; NaN for a stage that gives all images the same."""
        assert isinstance(self._hsic, Tensor)
        norm = self._hsic.diagonal().sqrt()
        return self._hsic / (norm[:, None] * norm)


def stage_outputs(distiller: Distiller, images: Tensor) -> dict[str, dict[str, Tensor]]:
    """Outputs of all stages, by model and by name: "T1" to "T4", "S1" to "S4", a fusion model's "S3", "S3_T4", "T4".

    Args:
        distiller: in eval mode; of a fusion model with several splices the first counts.
        images: (N, C, H, W) in [0, 1].
    """
    by_number = {
        role: model.stage_outputs(distiller.prepare(images, role), range(1, len(model.stages) + 1))
        for role, model in distiller.models.items()
    }
    letters = {STUDENT: "S", TEACHER: "T"}
    outputs = {role: {f"{letters[role]}{i}": x for i, x in stages.items()} for role, stages in by_number.items()}
    for name, fusion in distiller.fusions.items():
        outputs[name] = fusion.stage_outputs(by_number[start_of(fusion, 0)[0]], 0)
    return outputs


@dataclass(frozen=True)
class StageSimilarity:
    """What a config's ``cka`` asks for: maps of CKA between the stages of teacher, fusion models and student.

    Args:
        images: how many validation images, the same ones in every run; all where there are fewer.
        batch_size: images in a batch, at least 4; a last, smaller batch is left out.

    Raises:
        ConfigError: for numbers with which there is no batch.
    """

    images: int = 512
    batch_size: int = 256

    def __post_init__(self) -> None:
        if not SMALLEST_BATCH <= self.batch_size <= self.images:
            raise ConfigError(
                f"cka: batch_size must be from {SMALLEST_BATCH} to images, not {self.batch_size} of {self.images}; "
                "cka=None is off"
            )

    @torch.no_grad()
    def maps(self, distiller: Distiller, dataset: Dataset[Any]) -> dict[str, Any] | None:
        """Compares stages on images drawn at random, for a data set may come class by class.

        Args:
            distiller: whose models are compared; left in eval mode.
            dataset: whose samples have ``inputs`` and ``labels``.

        Returns:
            ``{"images": how many, "maps": {"teacher_student": {"models": ["teacher", "student"], "rows": names of the
            first's stages, "columns": of the second's, "values": CKA by row, None for a stage that gives all images
            the same}, "teacher_fusion": ..., "fusion_student": ...}}``, or None where there is no second model, or no
            batch of images.
        """
        count: int = len(dataset)  # type: ignore[arg-type]
        positions = torch.randperm(count, generator=torch.Generator().manual_seed(0))[: self.images].tolist()
        size = min(self.batch_size, len(positions))
        pairs = _pairs(distiller)
        if not pairs or size < SMALLEST_BATCH:
            return None
        distiller.eval()
        cka, names, used = MinibatchCKA(), {}, len(positions) // size * size
        for start in range(0, used, size):
            batch = default_collate([dataset[i] for i in positions[start : start + size]])
            images = distiller.data_preprocessor(batch, False)["inputs"]
            outputs = stage_outputs(distiller, images)
            names = {model: list(stages) for model, stages in outputs.items()}
            cka.add({f"{model}/{name}": x for model, stages in outputs.items() for name, x in stages.items()})
        first = dict(zip(names, accumulate(map(len, names.values()), initial=0), strict=False))
        values = [[round(v, 4) if isfinite(v) else None for v in row] for row in cka.result().tolist()]

        def part(a: str, b: str) -> dict[str, Any]:
            rows, columns = (slice(first[m], first[m] + len(names[m])) for m in (a, b))
            cut = [row[columns] for row in values[rows]]
            return {"models": [a, b], "rows": names[a], "columns": names[b], "values": cut}

        maps = {f"{a}_{b}": part(a, b) for a, b in pairs}
        return {"images": used, "maps": maps}


def _pairs(distiller: Distiller) -> list[tuple[str, str]]:
    """The models to compare, teacher first, student last."""
    if distiller.teacher is None:
        return []
    fusions = list(distiller.fusions)
    return [(TEACHER, STUDENT), *((TEACHER, f) for f in fusions), *((f, STUDENT) for f in fusions)]
