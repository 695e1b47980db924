"""One-shot searches: what becomes of one of the splices that a run has trained together."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import CNN

from fbt_plugins.distill.distiller import Distiller
from fbt_plugins.models.knowledge import Batch

pytest.importorskip("optuna")
from fbt_plugins.search.one_shot import state_of

Make = Callable[..., Distiller]


def test_the_state_of_one_of_several_splices_is_that_of_a_model_that_has_it_alone(
    make: Make, images: torch.Tensor, labels: torch.Tensor
) -> None:
    """Loaded strictly, and bit-equal; the student has BatchNorm, whose statistics each splice has of its own."""
    splices = ["S1-3+T4", "T1-3+S4", "T1-2+S3+T4", "T1-4+Shead"]
    several = make(CNN, splice=splices).train()
    for seed in range(8):
        several.step = several.plan(seed)
        several.losses(images, Batch(labels))
    expected = several.eval().predict(images, [*(f"fusion@{splice}" for splice in splices), "student"])
    for number, splice in enumerate(splices):
        alone = make(CNN, splice=splice)
        alone.load_state_dict(state_of(several, "fusion", number))
        found = alone.eval().predict(images, ["fusion", "student"])
        assert torch.equal(found["fusion"], expected[f"fusion@{splice}"]), splice
        assert torch.equal(found["student"], expected["student"]), splice
