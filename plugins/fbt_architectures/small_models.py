"""Models that the literature names and timm's factories cannot build, registered with timm.

Importing this module (or ``fbt_architectures``) makes the names known to ``timm.create_model``.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.models import MlpMixer, SwinTransformer, build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.mlp_mixer import Affine, ResBlock

_FASHION_MNIST = {"mean": (0.2860,) * 3, "std": (0.3530,) * 3}
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def _cfg(size: int, **values: Any) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, size, size),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
    } | values


_MLP = {"first_conv": "stem.proj", "classifier": "head", "fixed_input_size": True} | _FASHION_MNIST
_SWIN = {"first_conv": "patch_embed.proj", "classifier": "head.fc", "fixed_input_size": True} | _IMAGENET

default_cfgs = generate_default_cfgs(
    {
        "swin_nano_patch4_window7_224.untrained": _cfg(224, **_SWIN),
        "swin_pico_patch4_window7_224.untrained": _cfg(224, **_SWIN),
        "resmlp_s4_patch4_32.untrained": _cfg(32, **_MLP),
        "mixer_s4_patch4_32.untrained": _cfg(32, **_MLP),
    }
)


def _swin(variant: str, width: int, pretrained: bool, arguments: dict[str, Any]) -> SwinTransformer:
    fixed: dict[str, Any] = {
        "patch_size": 4,
        "window_size": 7,
        "embed_dim": width,
        "depths": (2, 2, 2, 2),
        "num_heads": (2, 4, 8, 16),
    }
    whole = fixed | arguments
    features = {"flatten_sequential": True, "out_indices": whole.pop("out_indices", tuple(range(len(whole["depths"]))))}
    return build_model_with_cfg(SwinTransformer, variant, pretrained, feature_cfg=features, **whole)


def _mlp(variant: str, pretrained: bool, fixed: dict[str, Any], arguments: dict[str, Any]) -> MlpMixer:
    small: dict[str, Any] = {"img_size": 32, "patch_size": 4, "num_blocks": 4}
    whole = small | fixed | arguments
    features = {"feature_cls": "getter", "out_indices": whole.pop("out_indices", 3)}
    return build_model_with_cfg(MlpMixer, variant, pretrained, feature_cfg=features, **whole)


@register_model
def swin_nano_patch4_window7_224(pretrained: bool = False, **arguments: Any) -> SwinTransformer:
    """Swin-N of the cross-architecture distillation literature (OFA-KD, arXiv 2310.19444): Swin of width 64."""
    return _swin("swin_nano_patch4_window7_224", 64, pretrained, arguments)


@register_model
def swin_pico_patch4_window7_224(pretrained: bool = False, **arguments: Any) -> SwinTransformer:
    """Swin-P of the cross-architecture distillation literature (OFA-KD, arXiv 2310.19444): Swin of width 48."""
    return _swin("swin_pico_patch4_window7_224", 48, pretrained, arguments)


@register_model
def resmlp_s4_patch4_32(pretrained: bool = False, **arguments: Any) -> MlpMixer:
    """ResMLP (arXiv 2105.03404) of 4 blocks for 32-pixel images; every size is an argument.

    ``init_values`` is the layer scale's start; timm's 1e-4 is made for 400 epochs and too small for short runs.
    """
    block = partial(ResBlock, init_values=arguments.pop("init_values", 0.1))
    fixed = {"embed_dim": 64, "mlp_ratio": 4, "block_layer": block, "norm_layer": Affine}
    return _mlp("resmlp_s4_patch4_32", pretrained, fixed, arguments)


@register_model
def mixer_s4_patch4_32(pretrained: bool = False, **arguments: Any) -> MlpMixer:
    """MLP-Mixer (arXiv 2105.01601) of 4 blocks for 32-pixel images; every size is an argument."""
    return _mlp("mixer_s4_patch4_32", pretrained, {"embed_dim": 64}, arguments)
