"""Fusion strategies: how activations of one model become what a stage of another takes."""

from __future__ import annotations

from fbt_plugins import Registries, hookimpl

from .identity import IdentityFusion
from .l2g import AttentionL2G, ConvL2G, L2GFusion, MixerL2G, PatchEmbedOnly


@hookimpl
def fbt_register(registries: Registries) -> None:
    for strategy in (L2GFusion, PatchEmbedOnly, AttentionL2G, ConvL2G, MixerL2G, IdentityFusion):
        registries.fusions.register_module(module=strategy)
