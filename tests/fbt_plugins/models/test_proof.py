"""The proof of a cut: it fails where stages and head are not the model, and touches nothing."""

import copy
import dataclasses

import pytest
import torch
from conftest import CNN
from torch import nn
from toy import DECLARED, Toy

from fbt_plugins import ARCHITECTURES
from fbt_plugins.models.proof import SplitError, _each_once
from fbt_plugins.models.staged import StagedModel


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (dict(stem="conv"), "logits in eval mode differ"),  # a gain of 0 + 1 would hide this without perturbation
        (dict(units="blocks.{0,2,1,3}"), "logits in eval mode differ"),
        (dict(units="blocks.{0,1,3}"), "logits in eval mode differ"),
        (dict(head="pool.0 pool.1 fc"), "in train mode differ"),  # the dropout
    ],
)
def test_verify_fails_where_the_stages_are_not_the_model(changes: dict, reason: str) -> None:
    wrong = dataclasses.replace(DECLARED, cuts="blocks.0 blocks.3", **changes)
    with pytest.raises(SplitError, match=reason):
        wrong.cut(Toy(), image_size=(8, 8)).verify()


def test_verify_fails_where_a_parameter_is_in_no_stage_or_in_two() -> None:
    good = DECLARED.cut(Toy(), image_size=(8, 8))
    for stages, times in (([nn.Sequential(*good.stages), *good.stages[:1]], 2), ([_Hidden(good.stages)], 0)):
        with pytest.raises(SplitError, match=f"is in {times} of the stages"):
            _each_once(StagedModel(good.net, stages, good.head, image_size=(8, 8)))


class _Hidden(nn.Module):
    """Runs modules that it does not list."""

    def __init__(self, stages: nn.ModuleList) -> None:
        super().__init__()
        self.stages = list(stages)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in self.stages:
            x = stage(x)
        return x


def test_verify_leaves_the_model_alone() -> None:
    model = ARCHITECTURES.build(CNN)
    before = copy.deepcopy(model.state_dict())
    model.eval()
    model.verify(32)
    assert not model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
