"""A part of a network: what counts as its own, and that it is the network's, not a copy."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fbt_plugins.models.net_part import NetPart


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.token = nn.Parameter(torch.zeros(1, 3))
        self.second[0].register_buffer("table", torch.ones(3), persistent=False)


def test_a_part_holds_what_it_is_told_and_nothing_of_it_is_a_copy() -> None:
    net = Net()
    part = NetPart(net, ["second.1"], ["token", "second.0.table"])
    assert set(dict(part.named_parameters())) == {"second_1.weight", "second_1.bias", "token"}
    assert dict(part.named_parameters())["token"] is net.token and part.net is net
    assert part.second_0_table is net.second[0].table and "second_0_table" not in part.state_dict()


def test_replaced_tensors_are_linked_again() -> None:
    net = Net()
    part = NetPart(net, [], ["token"])
    net.token = nn.Parameter(torch.ones(1, 3))
    assert part.token is not net.token
    part.relink()
    assert part.token is net.token


def test_a_module_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="third"):
        NetPart(Net(), ["third"], [])
