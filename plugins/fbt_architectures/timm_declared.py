"""Where timm's families are cut: a line of data for each class of model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fbt_plugins import Declaration, isotropic


def timm_head(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The head of most of timm's models: everything before the classifier, then the classifier, where there is one."""
    features = net.forward_head(x, pre_logits=True)  # type: ignore[operator]
    if net.num_classes == 0:
        return features, None
    return features, net.get_classifier()(features)  # type: ignore[operator]


def two_token_head(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
    """Distilled DeiT: class and distillation token, a classifier each, averaged (arXiv 2012.12877, section 4).

    The features are the mean of what the two classifiers are given, and what each of them gives is told besides; whether
    dropout comes before them depends on timm's version.
    """
    if net.num_classes == 0:
        return net.forward_head(x), None, {}  # type: ignore[operator]
    seen: list[tuple[Tensor, Tensor]] = []
    hooks = [c.register_forward_hook(lambda _, args, y: seen.append((args[0], y))) for c in net.get_classifier()]  # type: ignore[operator]
    try:
        logits = net.forward_head(x)  # type: ignore[operator]
    finally:
        for hook in hooks:
            hook.remove()
    (of_class, class_logits), (of_teacher, distillation_logits) = seen
    return (
        (of_class + of_teacher) / 2,
        logits,
        {"class_logits": class_logits, "distillation_logits": distillation_logits},
    )


def last_of_each_reduction(net: nn.Module, units: list[str]) -> list[str]:
    """The last four resolutions of a pyramid whose blocks of one resolution are several entries of feature_info."""
    last = {info["reduction"]: info["module"] for info in net.feature_info}  # type: ignore[union-attr]
    ends = [last[r] for r in sorted(last)][-4:]
    return [*ends[:-1], units[-1].rsplit(".", 1)[0]]


# fmt: off
DECLARED: dict[str, Declaration] = {
    "ResNet": Declaration("conv1 bn1 act1 maxpool", "layer1.* layer2.* layer3.* layer4.*", "layer1 layer2 layer3 layer4", timm_head),
    "EfficientNet": Declaration("conv_stem bn1", "blocks.*.*", last_of_each_reduction, timm_head, post="conv_head bn2"),
    "ConvNeXt": Declaration("stem", "stages.*.{downsample,blocks.*}", "stages.0 stages.1 stages.2 stages.3", timm_head, tail="norm_pre"),
    "SwinTransformer": Declaration("patch_embed", "layers.*.{downsample,blocks.*}", "layers.0 layers.1 layers.2 layers.3", timm_head, tail="norm", layout="NHWC"),
    "VisionTransformer": Declaration("patch_embed _pos_embed patch_drop norm_pre", "blocks.*", isotropic, timm_head, tail="norm", layout="NLC"),
    "VisionTransformerDistilled": Declaration("patch_embed _pos_embed patch_drop norm_pre", "blocks.*", isotropic, two_token_head, tail="norm", layout="NLC"),
    "MlpMixer": Declaration("stem", "blocks.*", isotropic, timm_head, tail="norm", layout="NLC"),
}
"""By class of the model; ResMLP is a MlpMixer, MobileNetV1 and V2 are EfficientNets, DeiT is a VisionTransformer."""
# fmt: on


def unrolled(net: nn.Module, grid: tuple[int, int]) -> Tensor | None:
    """Hiera keeps tokens that it will pool side by side (arXiv 2306.00989); timm's own ``reroll`` says where they stand.

    Returns:
        (h * w,), which token stands at each position of a grid, row by row.
    """
    levels = net.reroll.schedule.items()  # type: ignore[union-attr, operator]
    block = next((i for i, (_, size) in levels if tuple(size) == grid), None)
    if block is None:
        return None
    numbers = torch.arange(grid[0] * grid[1]).reshape(1, -1, 1)
    return net.reroll(numbers, block).flatten()  # type: ignore[operator]


ORDERS = {"Hiera": unrolled}
"""By class: where tokens stand that don't come row by row."""

FAMILIES = {
    "MaxxVit": "hybrid",
    "Nest": "attention",
    "Sequencer2d": "mlp",
    "SwiftFormer": "hybrid",
    "VOLO": "attention",
    "Xcit": "attention",
    "mobilevitv2": "hybrid",
}
"""By class, or by the beginning of a name: where counting operations sees less than the papers say (attention without a
product of activations, one convolution among many layers, a stem that outweighs its stage)."""


def family_of(name: str, net: nn.Module) -> str | None:
    """What the literature calls a model whose operations don't tell; None lets them tell."""
    if hasattr(getattr(net, "patch_embed", None), "backbone"):  # a transformer on a convolutional network
        return "hybrid"
    return FAMILIES.get(type(net).__name__) or next(
        (f for start, f in FAMILIES.items() if name.startswith(start)), None
    )
