"""Losses: what is compared between a giver's knowledge and a receiver's, each from the literature."""

from __future__ import annotations

from fbt_plugins import Registries, hookimpl

from .attention_transfer import ATLoss
from .crd import CRDLoss
from .cross_entropy import CrossEntropyLoss
from .deit import DeiTLoss
from .dist import DISTLoss
from .fitnet import FitNetLoss
from .infonce import InfoNCELoss, MSELoss
from .kd import BKDLoss, DKDLoss, KDLoss
from .ofa import OFALoss
from .ofa_exits import OFAExitsLoss
from .relations import CCLoss, RKDLoss
from .rsd import RSDLoss
from .sliced_wasserstein import SlicedWassersteinLoss

LOSSES = (
    ATLoss,
    BKDLoss,
    CCLoss,
    CRDLoss,
    CrossEntropyLoss,
    DeiTLoss,
    DISTLoss,
    DKDLoss,
    FitNetLoss,
    InfoNCELoss,
    KDLoss,
    MSELoss,
    OFAExitsLoss,
    OFALoss,
    RKDLoss,
    RSDLoss,
    SlicedWassersteinLoss,
)


@hookimpl
def fbt_register(registries: Registries) -> None:
    for loss in LOSSES:
        registries.losses.register_module(module=loss)
