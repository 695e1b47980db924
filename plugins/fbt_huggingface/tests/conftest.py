"""Plugins, loaded once; and tiny configs of every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fbt_plugins import ARCHITECTURES, StagedModel, load_plugins

_DROPOUT = dict(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
_TOKENS: dict[str, Any] = dict(
    _DROPOUT, hidden_size=24, num_hidden_layers=5, num_attention_heads=3, image_size=32, patch_size=8
)
_VIT = dict(_TOKENS, intermediate_size=48)
_DINO = dict(_TOKENS, drop_path_rate=0.1)
_SWIN = dict(
    _DROPOUT, image_size=64, patch_size=2, embed_dim=8, depths=[2, 2, 2, 1], num_heads=[1, 2, 2, 4], window_size=4
)
_SEEN = dict(
    hidden_size=32, num_hidden_layers=6, num_attention_heads=2, image_size=32, patch_size=8, intermediate_size=48
)
_LEVIT = dict(
    hidden_sizes=[16, 24, 32], num_attention_heads=[2, 2, 2], depths=[1, 1, 1], key_dim=[8, 8, 8], image_size=64
)
_PYRAMID = dict(depths=[1, 2, 1, 1], hidden_sizes=[8, 16, 24, 32])

SMALL: dict[str, dict[str, Any]] = {
    "beit": dict(_VIT, name="beit", drop_path_rate=0.1, use_relative_position_bias=True),
    "beit of a class token": dict(
        _VIT, name="beit", use_mean_pooling=False, use_mask_token=True, use_absolute_position_embeddings=True
    ),
    "bit": dict(name="bit", embedding_size=32, hidden_sizes=[128] * 4, depths=[1] * 4),
    "clip": dict(name="clip", vision_config=_SEEN),
    "convnext": dict(_PYRAMID, name="convnext", drop_path_rate=0.1),
    "convnextv2": dict(_PYRAMID, name="convnextv2", drop_path_rate=0.1),
    "cvt": dict(
        name="cvt", embed_dim=[16, 24, 32], num_heads=[1, 1, 2], depth=[1, 2, 3], drop_path_rate=[0.0, 0.1, 0.1]
    ),
    "data2vec-vision": dict(_VIT, name="data2vec-vision", drop_path_rate=0.1, use_relative_position_bias=True),
    "deit": dict(_VIT, name="deit"),
    "deit_with_teacher": dict(_VIT, name="deit_with_teacher"),
    "dinov2": dict(_DINO, name="dinov2"),
    "dinov2 of SwiGLU": dict(_DINO, name="dinov2", use_swiglu_ffn=True, use_mask_token=False),
    "dinov2_with_registers": dict(_DINO, name="dinov2_with_registers"),
    "donut-swin": dict(_SWIN, name="donut-swin", patch_size=4, window_size=2),
    "efficientnet": dict(
        name="efficientnet", width_coefficient=0.3, depth_coefficient=0.3, hidden_dim=384, image_size=32
    ),
    "focalnet": dict(name="focalnet", embed_dim=8, depths=[1, 2, 1, 1], drop_path_rate=0.1, image_size=64),
    "hgnet_v2": dict(name="hgnet_v2"),
    "hiera": dict(
        name="hiera", embed_dim=8, num_heads=[1, 2, 2, 4], depths=[1, 2, 2, 1], image_size=[64, 64], drop_path_rate=0.1
    ),
    "ijepa": dict(_VIT, name="ijepa"),
    "levit": dict(_LEVIT, name="levit"),
    "levit_with_teacher": dict(_LEVIT, name="levit_with_teacher"),
    "metaclip_2": dict(name="metaclip_2", vision_config=_SEEN),
    "mobilenet_v1": dict(name="mobilenet_v1", depth_multiplier=0.25, classifier_dropout_prob=0.1),
    "mobilenet_v2": dict(name="mobilenet_v2", depth_multiplier=0.25, classifier_dropout_prob=0.1),
    "mobilevit": dict(name="mobilevit", image_size=64),
    "mobilevitv2": dict(name="mobilevitv2", width_multiplier=0.5, image_size=64),
    "poolformer": dict(_PYRAMID, name="poolformer", drop_path_rate=0.1),
    "pp_lcnet": dict(name="pp_lcnet", scale=0.25),
    "pvt": dict(
        _PYRAMID, name="pvt", num_attention_heads=[1, 1, 2, 2], sequence_reduction_ratios=[4, 2, 1, 1], image_size=64
    ),
    "pvt_v2": dict(_PYRAMID, name="pvt_v2", num_attention_heads=[1, 1, 2, 2], image_size=64),
    "regnet": dict(_PYRAMID, name="regnet", embedding_size=8, groups_width=4),
    "resnet": dict(_PYRAMID, name="resnet", embedding_size=8),
    "resnet of basic layers": dict(_PYRAMID, name="resnet", embedding_size=8, layer_type="basic"),
    "segformer": dict(_PYRAMID, name="segformer", num_attention_heads=[1, 1, 2, 2], drop_path_rate=0.1),
    "siglip": dict(name="siglip", vision_config=_SEEN),
    "swiftformer": dict(name="swiftformer", embed_dims=[16, 24, 32, 48], depths=[1] * 4, image_size=64),
    "swin": dict(_SWIN, name="swin", drop_path_rate=0.1),
    "swin of absolute positions": dict(_SWIN, name="swin", use_absolute_embeddings=True),
    "swin of windows that need padding": dict(_SWIN, name="swin", window_size=3),
    "swinv2": dict(_SWIN, name="swinv2", drop_path_rate=0.1),
    "textnet": dict(name="textnet"),
    "vit": dict(_VIT, name="vit"),
    "vit of eager attention": dict(_VIT, name="vit", attn_implementation="eager"),
    "vit_msn": dict(_VIT, name="vit_msn"),
}


def size_of(config: dict[str, Any]) -> int:
    size = config.get("vision_config", config).get("image_size", 64)
    return size if isinstance(size, int) else size[0]


def build(name: str = "vit", **changes: Any) -> StagedModel:
    """A tiny model, by its name in SMALL."""
    torch.manual_seed(0)
    return ARCHITECTURES.build(dict(type="huggingface", num_classes=7) | SMALL[name] | changes)


torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def plugins() -> Any:
    """The process's plugins."""
    return load_plugins()
