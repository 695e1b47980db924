"""OFA's exits, as the original makes them."""

from __future__ import annotations

import pytest
import torch
from fbt_losses.ofa_exits import TokenExit, make_exit
from torch import Tensor

from fbt_plugins import StageSpec

# ---- exits ----------------------------------------------------------------------------------------------------------


def test_an_exit_of_a_cnn_is_the_originals() -> None:
    """Stage 1 of ResNet18 beside a teacher of width 768, 100 classes; two convolutions of two kinds per halving."""
    branch = make_exit(StageSpec("NCHW", 64, (56, 56)), 3, 512, 768, 100)
    halving = sum(9 * a + a * a + 2 * a + 9 * a + a * b + 2 * b for a, b in ((64, 128), (128, 256), (256, 768)))
    assert sum(p.numel() for p in branch.parameters()) == halving + 768 * 100 + 100
    assert branch[:3](torch.zeros(2, 64, 56, 56)).shape == (2, 768, 7, 7)
    last = make_exit(StageSpec("NCHW", 512, (7, 7)), 0, 512, 768, 100)
    assert [type(m).__name__ for m in last] == ["Conv2d", "AdaptiveAvgPool2d", "Flatten", "Linear"]


@pytest.mark.parametrize(
    ("spec", "left", "width", "side", "blocks"),
    [
        (StageSpec("NLC", 24, (14, 14), 1), 3, 24, 7, 3),  # ViT, stage 1
        (StageSpec("NLC", 24, (14, 14)), 0, 24, 7, 1),  # ResMLP, stage 4
        (StageSpec("NHWC", 8, (56, 56)), 3, 64, 7, 3),  # Swin, stage 1
        (StageSpec("NHWC", 64, (7, 7)), 0, 64, 7, 1),  # Swin, stage 4
        (StageSpec("NLC", 24, (15, 15), 2), 1, 36, 8, 1),  # odd, and wider
    ],
)
def test_an_exit_of_tokens_merges_to_seven(spec: StageSpec, left: int, width: int, side: int, blocks: int) -> None:
    branch = TokenExit(spec, left, width, 5)
    seen: list[Tensor] = []
    branch.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = torch.randn(spec.sizes(2))
    assert branch(x).shape == (2, 5) and len(branch.blocks) == blocks
    assert seen[0].shape == (2, spec.prefix_tokens + side**2, width)
    assert bool(branch.merge) == (spec.grid[0] >= 14)


def test_merging_keeps_neighbours_together() -> None:
    branch = TokenExit(StageSpec("NHWC", 2, (14, 14)), 1, 4, 3)
    x = torch.randn(1, 14, 14, 2, requires_grad=True)
    branch.merge(x)[0, 2, 5].sum().backward()
    assert {tuple(p) for p in x.grad.abs().sum(3)[0].nonzero().tolist()} == {(4, 10), (4, 11), (5, 10), (5, 11)}
