"""Losses: what is compared between a giver's knowledge and a receiver's, each from the literature."""

from __future__ import annotations

from fbt_plugins import hookimpl
from fbt_plugins.registry import Registries

from .attention_transfer import ATLoss
from .cross_entropy import CrossEntropyLoss
from .deit import DeiTLoss
from .fitnet import FitNetLoss
from .infonce import InfoNCELoss
from .kd import KDLoss
from .mse import MSELoss
from .ofa import OFALoss
from .ofa_exits import OFAExitsLoss
from .sliced_wasserstein import SlicedWassersteinLoss

LOSSES = (
    ATLoss,
    CrossEntropyLoss,
    DeiTLoss,
    FitNetLoss,
    InfoNCELoss,
    KDLoss,
    MSELoss,
    OFAExitsLoss,
    OFALoss,
    SlicedWassersteinLoss,
)


@hookimpl
def fbt_register(registries: Registries) -> None:
    for loss in LOSSES:
        registries.losses.register_module(module=loss)
