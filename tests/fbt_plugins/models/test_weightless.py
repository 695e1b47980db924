"""What is shortened on the meta device has the shapes, strides and types of the real thing, and its complaints."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fbt_plugins.models.weightless import Shortened, meta_copy, whole_copy

CHANNELS, SIZES = 6, (2, 6, 4, 5)
MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "in rows": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "half precision": lambda x: x.bfloat16(),
    "a view of every second row": lambda x: x[:, :, ::2],
}
FUNCTIONS: dict[str, Callable[[Tensor], object]] = {
    "gelu": F.gelu,
    "gelu of tanh": lambda x: F.gelu(x, approximate="tanh"),
    "layer norm": lambda x: F.layer_norm(x, x.shape[-1:], x.new_ones(x.shape[-1])),
    "layer norm behind a permutation": lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (CHANNELS,)),
    "layer norm of a whole map": lambda x: torch.native_layer_norm(x, x.shape[1:], None, None, 1e-5),
    "batch norm": lambda x: F.batch_norm(x, x.new_zeros(CHANNELS), x.new_ones(CHANNELS), x.new_ones(CHANNELS)),
    "batch norm in training": lambda x: F.batch_norm(
        x, x.new_zeros(CHANNELS), x.new_ones(CHANNELS), x.new_ones(CHANNELS), x.new_ones(CHANNELS), training=True
    ),
    "linear": lambda x: F.linear(x.permute(0, 2, 3, 1), x.new_ones(3, CHANNELS), x.new_ones(3)),
    "linear of rows": lambda x: F.linear(x.mean((2, 3)), x.new_ones(3, CHANNELS), x.new_ones(3)),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("arrange", MAPS.values(), ids=MAPS)
def test_same_as_the_real_thing(function: Callable[[Tensor], object], arrange: Callable[[Tensor], Tensor]) -> None:
    real = function(arrange(torch.rand(SIZES)))
    with torch.no_grad(), Shortened():
        found = function(arrange(torch.empty(SIZES, device="meta")))
    firsts = [x[0] if isinstance(x, tuple) else x for x in (real, found)]
    assert [(x.shape, x.stride(), x.dtype) for x in firsts[1:]] == [(x.shape, x.stride(), x.dtype) for x in firsts[:1]]
    if isinstance(real, tuple):
        assert [x.shape for x in real] == [x.shape for x in found]


@pytest.mark.parametrize(
    "layer", [nn.LayerNorm(5), nn.LayerNorm((1, 2, 3, 4, 5)), nn.BatchNorm2d(5).eval(), nn.Linear(4, 5)], ids=str
)
def test_what_is_wrong_is_said_as_ever(layer: nn.Module) -> None:
    shadow, images = meta_copy(layer), torch.empty(2, 3, 6, 7, device="meta")
    said = []
    for mode in (torch.no_grad(), Shortened()):
        with mode, pytest.raises(RuntimeError) as error:
            shadow(images)
        said.append(str(error.value))
    assert said[0] == said[1]


def test_real_tensors_are_computed() -> None:
    x = torch.rand(2, 3)
    with Shortened():
        found = F.gelu(x)
    assert torch.equal(found, F.gelu(x))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_module_with_a_computed_weight_can_be_copied() -> None:
    layer = nn.utils.weight_norm(nn.Conv2d(3, 3, 1))  # keeps its weight as no leaf of a graph
    with pytest.raises(RuntimeError, match="deepcopy protocol"):
        copy.deepcopy(layer)
    twin, x = whole_copy(layer), torch.ones(2, 3, 4, 4)
    assert torch.equal(twin(x), layer(x))
    twin.weight_g.data.mul_(2)
    assert not torch.equal(twin(x), layer(x))
    assert meta_copy(layer)(x.to("meta")).shape == x.shape
