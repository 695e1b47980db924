"""Fusion strategies: how activations of one model become what a stage of another takes."""

from __future__ import annotations

from fbt_plugins import Registries, hookimpl

from .attention_l2g import AttentionL2G
from .conv_l2g import ConvL2G
from .identity import IdentityFusion
from .l2g import L2GFusion
from .mixer_l2g import MixerL2G
from .patch_embed_only import PatchEmbedOnly


@hookimpl
def fbt_register(registries: Registries) -> None:
    for strategy in (L2GFusion, PatchEmbedOnly, AttentionL2G, ConvL2G, MixerL2G, IdentityFusion):
        registries.fusions.register_module(module=strategy)
