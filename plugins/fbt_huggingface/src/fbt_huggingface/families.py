"""Where each family of transformers' classifiers is cut: the order in which its parts run, and a line of data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fbt_plugins import ConfigError, Declaration, isotropic

from .parts import (
    BiasedBlock,
    BiasedStem,
    ChannelsLast,
    ClassAndMean,
    ClassNorm,
    ClassToken,
    First,
    GridBlock,
    GridMerge,
    GridPart,
    GridPatches,
    GridStem,
    JoinedBlocks,
    JoinedStage,
    MapBlocks,
    MapMean,
    Masked,
    Mean,
    MeanBehind,
    Row,
    Scale,
    TokenPool,
    Unrolled,
    averaged_head,
    normed_head,
    two_token_head,
)


@dataclass(frozen=True)
class Family:
    """One of transformers' model types.

    Attributes:
        classifier: its class for image classification; a name, so that nothing is imported before it is built.
        row: lists the parts of a model of that class.
        cut: where the row is cut.
        prefix_tokens: of a model.
        before: layout of all stages but the last, where the class token joins only there.
        order: of tokens that don't stand row by row, see ``StagedModel``.
        answer: under which name a model answers with its logits.
    """

    classifier: str
    row: Callable[[Any], Row]
    cut: Declaration
    prefix_tokens: Callable[[Any], int] = lambda _: 0
    before: str = ""
    order: Callable[[Any, tuple[int, int]], Tensor] | None = None
    answer: str = "logits"


def pair(size: Any) -> tuple[int, int]:
    """(height, width) of a config's size, which may be one number."""
    return (size, size) if isinstance(size, int) else tuple(size)


def _vit(model: Any) -> Row:
    base = model.base_model
    return Row(First(base.embeddings), base.layernorm, ClassToken(), model.classifier, blocks=map(First, base.layers))


def _ijepa(model: Any) -> Row:
    base = model.base_model
    return Row(First(base.embeddings), base.layernorm, Mean(1), model.classifier, blocks=map(First, base.layers))


def _deit_with_teacher(model: Any) -> Row:
    base = model.base_model
    both = nn.ModuleList([model.cls_classifier, model.distillation_classifier])
    return Row(First(base.embeddings), base.layernorm, nn.Identity(), both, blocks=map(First, base.layers))


def _dinov2(model: Any) -> Row:
    base = model.base_model
    pool, blocks = ClassAndMean(1 + _registers(model)), map(First, base.encoder.layer)
    return Row(First(base.embeddings), base.layernorm, pool, model.classifier, blocks=blocks)


def _registers(model: Any) -> int:
    return getattr(model.config, "num_register_tokens", 0)


def _beit(model: Any) -> Row:
    base, config = model.base_model, model.config
    if config.use_shared_relative_position_bias:
        raise ConfigError(
            f"{config.model_type}: use_shared_relative_position_bias=True gives one bias to all blocks, so that no cut "
            "could own it; "
            "use_relative_position_bias=True gives each its own"
        )
    h, w = pair(config.image_size)
    patch = config.patch_size
    grid = (h // patch, w // patch)
    layers = base.layers if hasattr(base, "layers") else base.encoder.layer
    stem, blocks = BiasedStem(base.embeddings, patch, grid), [BiasedBlock(layer, patch, grid) for layer in layers]
    return Row(stem, base.layernorm, base.pooler, model.classifier, blocks=blocks)


def _swin(model: Any) -> Row:
    base = model.base_model
    stages: list[list[nn.Module]] = []
    merging: list[nn.Module] = []  # of the stage before: a stage begins with it, as in the paper and in timm
    for layer in base.encoder.layers:
        stages.append([GridPart(part) for part in (*merging, *layer.blocks)])
        merging = [] if layer.downsample is None else [layer.downsample]
    norm = getattr(base, "layernorm", nn.Identity())  # Donut's Swin has none
    return Row(GridStem(base.embeddings), norm, TokenPool(base.pooler), model.classifier, stages=stages)


def _convnext(model: Any) -> Row:
    base = model.base_model
    stages = []
    for stage in base.encoder.stages:
        downsample = list(stage.downsampling_layer)  # norm and convolution, one unit; empty in stage 1
        stages.append([*([nn.Sequential(*downsample)] if downsample else []), *stage.layers])
    pool = nn.Sequential(Mean(-2, -1), base.layernorm)
    return Row(base.embeddings, nn.Identity(), pool, model.classifier, stages=stages)


def _resnet(model: Any) -> Row:
    base = model.base_model
    flatten, classifier = model.classifier
    stages = [list(stage.layers) for stage in base.encoder.stages]
    return Row(base.embedder, nn.Identity(), nn.Sequential(base.pooler, flatten), classifier, stages=stages)


def _poolformer(model: Any) -> Row:
    encoder = model.base_model.encoder
    stages = [
        [patches, *map(First, blocks)] for patches, blocks in zip(encoder.patch_embeddings, encoder.block, strict=True)
    ]
    return Row(nn.Identity(), model.norm, Mean(-2, -1), model.classifier, stages=stages)


def _mobilenet_v1(model: Any) -> Row:
    layers = list(model.base_model.layer)  # two to a block; a stage for each resolution from a quarter on
    return _mobilenet(model, [layers[:6], layers[6:10], layers[10:22], layers[22:]])


def _mobilenet_v2(model: Any) -> Row:
    layers, last = list(model.base_model.layer), model.base_model.conv_1x1  # in stage 4, as in the field's tables
    return _mobilenet(model, [layers[:2], layers[2:5], layers[5:12], [*layers[12:], last]])


def _mobilenet(model: Any, stages: list[list[nn.Module]]) -> Row:
    base = model.base_model
    pool = nn.Sequential(base.pooler, nn.Flatten(), model.dropout)
    return Row(base.conv_stem, nn.Identity(), pool, model.classifier, stages=stages)


def _bit(model: Any) -> Row:
    base = model.base_model
    flatten, classifier = model.classifier
    stages = [list(stage.layers) for stage in base.encoder.stages]
    return Row(base.embedder, base.norm, nn.Sequential(base.pooler, flatten), classifier, stages=stages)


def _clip(model: Any) -> Row:
    base = model.vision_model
    stem, blocks = nn.Sequential(base.embeddings, base.pre_layrnorm), map(Masked, base.encoder.layers)
    return Row(stem, nn.Identity(), MeanBehind(1), model.classifier, blocks=blocks, unused=[base.post_layernorm])


def _siglip(model: Any) -> Row:
    base = model.vision_model
    unused = [base.head] if getattr(base, "use_head", True) else []
    blocks = map(Masked, base.encoder.layers)
    return Row(base.embeddings, base.post_layernorm, Mean(1), model.classifier, blocks=blocks, unused=unused)


def _efficientnet(model: Any) -> Row:
    base, config = model.base_model, model.config
    encoder = base.encoder
    blocks, stages = list(encoder.blocks), [[]]
    reductions = 0
    for stride, repeats in zip(config.strides, config.num_block_repeats, strict=True):
        reductions += stride > 1
        if stride > 1 and reductions > 1:
            stages.append([])
        count = math.ceil(config.depth_coefficient * repeats)
        stages[-1] += blocks[:count]
        blocks = blocks[count:]
    stages[-1].append(nn.Sequential(encoder.top_conv, encoder.top_bn, encoder.top_activation))
    pool = nn.Sequential(base.pooler, nn.Flatten(), model.dropout)
    return Row(base.embeddings, nn.Identity(), pool, model.classifier, stages=stages)


def _hgnet(model: Any) -> Row:
    stages = [[stage.downsample, *stage.blocks] for stage in model.encoder.stages]
    return Row(model.embedder, nn.Identity(), nn.Sequential(model.avg_pool, model.flatten), model.fc, stages=stages)


def _textnet(model: Any) -> Row:
    base = model.base_model
    pool = nn.Sequential(model.avg_pool, model.flatten)
    return Row(base.stem, nn.Identity(), pool, model.fc, stages=[[stage] for stage in base.encoder.stages])


def _mobilevit(model: Any) -> Row:
    base = model.base_model
    first, second, *others = base.encoder.layer
    stages = [[first, second], *([layer] for layer in others)]
    stages[-1] += [base.conv_1x1_exp] if hasattr(base, "conv_1x1_exp") else []
    pool = nn.Sequential(Mean(-2, -1), getattr(model, "dropout", nn.Identity()))
    return Row(base.conv_stem, nn.Identity(), pool, model.classifier, stages=stages)


def _pvt_v2(model: Any) -> Row:
    stages = [
        [GridPatches(layer.patch_embedding), *map(GridBlock, layer.blocks), layer.layer_norm]
        for layer in model.base_model.encoder.layers
    ]
    return Row(ChannelsLast(), nn.Identity(), MapMean(), model.classifier, stages=stages)


def _segformer(model: Any) -> Row:
    stages = [
        [GridPatches(stage.patch_embeddings), *map(GridBlock, stage.blocks), stage.layer_norm]
        for stage in model.base_model.stages
    ]
    pool = MapMean() if model.config.reshape_last_stage else nn.Sequential(nn.Flatten(1, 2), Mean(1))
    return Row(ChannelsLast(), nn.Identity(), pool, model.classifier, stages=stages)


def _pvt(model: Any) -> Row:
    encoder = model.base_model.encoder
    pairs = list(zip(encoder.patch_embeddings, encoder.block, strict=True))
    stages = [[GridPatches(patches), *map(GridBlock, blocks)] for patches, blocks in pairs[:-1]]
    stages.append([JoinedBlocks(*pairs[-1])])
    return Row(ChannelsLast(), encoder.layer_norm, ClassToken(), model.classifier, stages=stages)


def _cvt(model: Any) -> Row:
    *without, last = model.config.cls_token
    if any(without) or not last:
        raise ConfigError("cvt: cls_token has to be True for the last stage and False for all others")
    *first, last_stage = model.base_model.encoder.stages
    stages = [[stage.embedding, MapBlocks(stage.layers)] for stage in first]
    stages[:1] = [[unit] for unit in stages[0]]  # of three stages, the first one's patches are a stage of their own
    pool = ClassNorm(model.layernorm)
    return Row(nn.Identity(), nn.Identity(), pool, model.classifier, stages=[*stages, [JoinedStage(last_stage)]])


def _focalnet(model: Any) -> Row:
    base = model.base_model
    stages: list[list[nn.Module]] = []
    merging: list[nn.Module] = []  # as in Swin
    for stage in base.encoder.stages:
        stages.append([*merging, *map(GridPart, stage.layers)])
        merging = [] if stage.downsample is None else [GridMerge(stage.downsample)]
    return Row(GridStem(base.embeddings), base.layernorm, TokenPool(base.pooler), model.classifier, stages=stages)


def _hiera(model: Any) -> Row:
    base = model.base_model
    stages = [list(map(First, stage.layers)) for stage in base.encoder.stages]
    stem = Unrolled(base.embeddings, base.unroll_schedule)
    return Row(stem, nn.Identity(), base.pooler, model.classifier, stages=stages)


def _order_of_hiera(model: Any, grid: tuple[int, int]) -> Tensor:
    encoder = model.base_model.encoder
    stage = next(i for i, (_, size) in encoder.schedule.items() if tuple(size) == grid)
    return encoder.reroll(torch.arange(math.prod(grid)).view(1, -1, 1), stage).flatten()


def _pp_lcnet(model: Any) -> Row:
    *early, third, fourth, last = (list(block.layers) for block in model.encoder.blocks)
    pool = nn.Sequential(
        model.avg_pool, model.last_convolution, model.act_fn, Scale(1 - model.hidden_dropout_prob), model.flatten
    )
    stages = [[unit for units in early for unit in units], third, fourth, last]
    return Row(model.encoder.convolution, nn.Identity(), pool, model.head, stages=stages)


def _swiftformer(model: Any) -> Row:
    base = model.base_model
    stages: list[list[nn.Module]] = [[]]
    for part in base.encoder.network:  # stages, and between them what makes the map smaller
        if hasattr(part, "blocks"):
            stages[-1] += list(part.blocks)
            stages.append([])
        else:
            stages[-1].append(part)
    both = nn.ModuleList([model.head, model.dist_head])
    pool = nn.Sequential(nn.Flatten(2), Mean(-1))
    return Row(base.patch_embed, model.norm, pool, both, stages=stages[:-1])


def _levit(model: Any) -> Row:
    head = model.classifier
    if isinstance(head, nn.Identity):  # of an encoder
        return _of_levit(model, Mean(1), head)
    return _of_levit(model, nn.Sequential(Mean(1), head.batch_norm), head.linear)


def _levit_with_teacher(model: Any) -> Row:
    return _of_levit(model, Mean(1), nn.ModuleList([model.classifier, model.classifier_distill]))


def _of_levit(model: Any, pool: nn.Module, classifier: nn.Module) -> Row:
    base = model.base_model
    stages = [[base.patch_embeddings], *(list(stage.layers) for stage in base.encoder.stages)]
    return Row(nn.Identity(), nn.Identity(), pool, classifier, stages=stages)


def _each_stage(row: nn.Module, units: list[str]) -> list[str]:
    return [f"stages.{i}" for i in range(len(row.stages))]  # type: ignore[arg-type]


TOKENS = Declaration("stem", "blocks.*", isotropic, "pool classifier", tail="norm", layout="NLC")
TWO_TOKENS = replace(TOKENS, head=two_token_head)
MAPS = Declaration("stem", "stages.*.*", _each_stage, "pool classifier", tail="norm")
GRIDS = replace(MAPS, layout="NHWC")
PYRAMID_OF_TOKENS = replace(MAPS, layout="NLC")

FAMILIES: dict[str, Family] = {
    "beit": Family("BeitForImageClassification", _beit, TOKENS, lambda _: 1),
    "bit": Family("BitForImageClassification", _bit, MAPS),
    "clip": Family("CLIPForImageClassification", _clip, TOKENS, lambda _: 1),
    "convnext": Family("ConvNextForImageClassification", _convnext, MAPS),
    "convnextv2": Family("ConvNextV2ForImageClassification", _convnext, MAPS),
    "cvt": Family("CvtForImageClassification", _cvt, PYRAMID_OF_TOKENS, lambda _: 1, before="NCHW"),
    "data2vec-vision": Family("Data2VecVisionForImageClassification", _beit, TOKENS, lambda _: 1),
    "deit": Family("DeiTForImageClassification", _vit, TOKENS, lambda _: 2),
    "deit_with_teacher": Family("DeiTForImageClassificationWithTeacher", _deit_with_teacher, TWO_TOKENS, lambda _: 2),
    "dinov2": Family("Dinov2ForImageClassification", _dinov2, TOKENS, lambda _: 1),
    "dinov2_with_registers": Family(
        "Dinov2WithRegistersForImageClassification", _dinov2, TOKENS, lambda model: 1 + _registers(model)
    ),
    "donut-swin": Family("DonutSwinForImageClassification", _swin, GRIDS),
    "efficientnet": Family("EfficientNetForImageClassification", _efficientnet, MAPS),
    "focalnet": Family("FocalNetForImageClassification", _focalnet, GRIDS),
    "hgnet_v2": Family("HGNetV2ForImageClassification", _hgnet, MAPS),
    "hiera": Family("HieraForImageClassification", _hiera, PYRAMID_OF_TOKENS, order=_order_of_hiera),
    "ijepa": Family("IJepaForImageClassification", _ijepa, TOKENS),
    "levit": Family("LevitForImageClassification", _levit, PYRAMID_OF_TOKENS),
    "levit_with_teacher": Family(
        "LevitForImageClassificationWithTeacher",
        _levit_with_teacher,
        replace(PYRAMID_OF_TOKENS, head=normed_head),
    ),
    "metaclip_2": Family("MetaClip2ForImageClassification", _clip, TOKENS, lambda _: 1),
    "mobilenet_v1": Family("MobileNetV1ForImageClassification", _mobilenet_v1, MAPS),
    "mobilenet_v2": Family("MobileNetV2ForImageClassification", _mobilenet_v2, MAPS),
    "mobilevit": Family("MobileViTForImageClassification", _mobilevit, MAPS),
    "mobilevitv2": Family("MobileViTV2ForImageClassification", _mobilevit, MAPS),
    "poolformer": Family("PoolFormerForImageClassification", _poolformer, MAPS),
    "pp_lcnet": Family("PPLCNetForImageClassification", _pp_lcnet, MAPS, answer="last_hidden_state"),
    "pvt": Family("PvtForImageClassification", _pvt, PYRAMID_OF_TOKENS, lambda _: 1, before="NHWC"),
    "pvt_v2": Family("PvtV2ForImageClassification", _pvt_v2, GRIDS),
    "regnet": Family("RegNetForImageClassification", _resnet, MAPS),
    "resnet": Family("ResNetForImageClassification", _resnet, MAPS),
    "segformer": Family("SegformerForImageClassification", _segformer, GRIDS),
    "siglip": Family("SiglipForImageClassification", _siglip, TOKENS),
    "swiftformer": Family("SwiftFormerForImageClassification", _swiftformer, replace(MAPS, head=averaged_head)),
    "swin": Family("SwinForImageClassification", _swin, GRIDS),
    "swinv2": Family("Swinv2ForImageClassification", _swin, GRIDS),
    "textnet": Family("TextNetForImageClassification", _textnet, MAPS),
    "vit": Family("ViTForImageClassification", _vit, TOKENS, lambda _: 1),
    "vit_msn": Family("ViTMSNForImageClassification", _vit, TOKENS, lambda _: 1),
}
"""By transformers' model type; the two ``..._with_teacher`` are ours, for the other classes of their types."""
