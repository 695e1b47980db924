"""Losses: what is compared between a giver's knowledge and a receiver's, each from the literature."""

from __future__ import annotations

from fbt_plugins import hookimpl
from fbt_plugins.registry import Registries

from .cross_entropy import CrossEntropyLoss
from .infonce import InfoNCELoss
from .kd import KDLoss
from .mse import MSELoss
from .ofa import OFALoss


@hookimpl
def fbt_register(registries: Registries) -> None:
    for loss in (CrossEntropyLoss, InfoNCELoss, KDLoss, MSELoss, OFALoss):
        registries.losses.register_module(module=loss)
