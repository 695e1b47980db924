"""Losses: what is compared between a giver's knowledge and a receiver's, each from the literature."""

from __future__ import annotations

from fbt_plugins import hookimpl
from fbt_plugins.registry import Registries

from .bkd import BKDLoss
from .cc import CCLoss
from .crd import CRDLoss
from .cross_entropy import CrossEntropyLoss
from .dist import DISTLoss
from .dkd import DKDLoss
from .infonce import InfoNCELoss
from .kd import KDLoss
from .mse import MSELoss
from .ofa import OFALoss
from .rkd import RKDLoss

ALL = (
    BKDLoss,
    CCLoss,
    CRDLoss,
    CrossEntropyLoss,
    DISTLoss,
    DKDLoss,
    InfoNCELoss,
    KDLoss,
    MSELoss,
    OFALoss,
    RKDLoss,
)


@hookimpl
def fbt_register(registries: Registries) -> None:
    for loss in ALL:
        registries.losses.register_module(module=loss)
