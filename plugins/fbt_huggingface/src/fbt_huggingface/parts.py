"""Parts of a transformers model as modules that map one tensor to one, which is what a stage is made of."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from fbt_plugins import FBTError


class Row(nn.Module):
    """A model's parts in the order they run: stem, units, norm, pool, classifier.

    It holds the model's own modules, so it has no weights of its own; the names of its children are those that
    ``stages`` speaks of, whatever a release of transformers calls them.

    Args:
        stem: images (N, C, H, W) -> what the first unit takes.
        norm: runs behind the last unit.
        pool: output of the norm -> features (N, D).
        classifier: features -> logits (N, classes).
        blocks: equal units, called "blocks.0", ...
        stages: in their place, the units of each stage, called "stages.0.0", ...
        unused: what the model has and runs, but its logits don't depend on.
    """

    def __init__(
        self,
        stem: nn.Module,
        norm: nn.Module,
        pool: nn.Module,
        classifier: nn.Module,
        *,
        blocks: Iterable[nn.Module] = (),
        stages: Iterable[Iterable[nn.Module]] = (),
        unused: Iterable[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.unused = nn.ModuleList(unused)
        self.stem, self.norm, self.pool, self.classifier = stem, norm, pool, classifier
        self.blocks, self.stages = nn.ModuleList(blocks), nn.ModuleList(map(nn.ModuleList, stages))


class _Wrapper(nn.Module):
    """Holds a part of a transformers model, and calls it as a stage is called."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part


class First(_Wrapper):
    """A part that answers with a tensor in some releases and with a tuple in others, whose first entry it is."""

    def forward(self, x: Tensor) -> Tensor:
        return _first(self.part(x))


class GridStem(_Wrapper):
    """Embeddings that answer with tokens and their grid: images (N, C, H, W) -> (N, h, w, D)."""

    def forward(self, images: Tensor) -> Tensor:
        tokens, grid = self.part(images)
        return tokens.unflatten(1, grid)


class GridPart(_Wrapper):
    """A Swin block or patch merging, which takes tokens and their grid: (N, h, w, D) -> (N, h', w', D')."""

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[1:3]
        tokens = _first(self.part(x.flatten(1, 2), (h, w)))
        if tokens.shape[1] != h * w:  # merged
            h, w = (h + 1) // 2, (w + 1) // 2
        return tokens.unflatten(1, (h, w))


class BiasedBlock(nn.Module):
    """A BEiT block, whose relative position bias depends on the images' size: (N, 1 + L, D) -> the same.

    Args:
        part: the block.
        patch: pixels per patch.
        grid: (h, w) that the model is made for; any other grid has to be a square, as tokens don't tell theirs.
    """

    def __init__(self, part: nn.Module, patch: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.part, self.patch, self.grid = part, patch, grid

    def forward(self, x: Tensor) -> Tensor:
        h, w = grid_of(x.shape[1] - 1, self.grid)
        # transformers caches the bias's index by the grid: made on the meta device, it would be of no use later
        with torch.device("cpu") if x.is_meta else nullcontext():
            return _first(self.part(x, resolution=(h * self.patch, w * self.patch)))


class BiasedStem(nn.Module):
    """BEiT's embeddings, which refuse images whose grid the blocks could not tell from the number of tokens."""

    def __init__(self, part: nn.Module, patch: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.part, self.patch, self.grid = part, patch, grid

    def forward(self, images: Tensor) -> Tensor:
        h, w = (side // self.patch for side in images.shape[2:])
        if grid_of(h * w, self.grid) != (h, w):
            raise FBTError(f"a grid of {h}x{w} patches is neither a square nor that of image_size")
        return _first(self.part(images))


class Masked(_Wrapper):
    """A block that asks for an attention mask, of which images have none."""

    def forward(self, x: Tensor) -> Tensor:
        return _first(self.part(x, None))


class GridPatches(_Wrapper):
    """Overlapping patches that answer with tokens and their grid: (N, h, w, D) -> (N, h', w', D')."""

    def forward(self, x: Tensor) -> Tensor:
        tokens, h, w = self.part(x.permute(0, 3, 1, 2).contiguous())
        return tokens.unflatten(1, (h, w))


class GridBlock(_Wrapper):
    """A block that takes tokens and their grid as two numbers: (N, h, w, D) -> the same."""

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[1:3]
        return _first(self.part(x.flatten(1, 2), h, w)).unflatten(1, (h, w))


class GridMerge(_Wrapper):
    """FocalNet's patches, which take a map and answer with tokens and their grid: (N, h, w, D) -> (N, h', w', D')."""

    def forward(self, x: Tensor) -> Tensor:
        tokens, grid = self.part(x.permute(0, 3, 1, 2))
        return tokens.unflatten(1, grid)


class MapBlocks(nn.Module):
    """CvT's blocks, which take tokens and their grid as two numbers: (N, D, h, w) -> the same.

    Args:
        blocks: of one stage.
    """

    def __init__(self, blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        tokens = x.flatten(2).permute(0, 2, 1)
        for block in self.blocks:  # type: ignore[attr-defined]
            tokens = block(tokens, h, w)
        return tokens.permute(0, 2, 1).unflatten(2, (h, w))


class JoinedStage(_Wrapper):
    """CvT's last stage, where the class token joins: (N, D, h, w) -> (N, 1 + L, D')."""

    def forward(self, x: Tensor) -> Tensor:
        patches, token = self.part(x)
        return torch.cat([token, patches.flatten(2).transpose(1, 2)], 1)


class JoinedBlocks(nn.Module):
    """PVT's last stage, whose patches bring the class token: (N, h, w, D) -> (N, 1 + L, D')."""

    def __init__(self, patches: nn.Module, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.patches, self.blocks = patches, nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        tokens, h, w = self.patches(x.permute(0, 3, 1, 2).contiguous())
        for block in self.blocks:
            tokens = _first(block(tokens, h, w))
        return tokens


class Unrolled(nn.Module):
    """Hiera's embeddings, whose tokens then stand by the windows in which they will be pooled: images -> (N, L, D).

    Args:
        part: the embeddings.
        schedule: strides of the poolings, the first one first.
    """

    def __init__(self, part: nn.Module, schedule: Iterable[Iterable[int]]) -> None:
        super().__init__()
        self.part, self.schedule = part, [tuple(strides) for strides in schedule]

    def forward(self, images: Tensor) -> Tensor:
        n, _, height, width = images.shape
        h, w = height // self.part.patch_stride[0], width // self.part.patch_stride[1]  # type: ignore[index,operator]
        x = _first(self.part(images)).unflatten(1, (h, w))
        width_of_tokens = x.shape[-1]
        for a, b in self.schedule:  # the batch grows by the positions of a window
            h, w = h // a, w // b
            x = x.view(-1, h, a, w, b, width_of_tokens).permute(0, 2, 4, 1, 3, 5)
            x = x.reshape(-1, h, w, width_of_tokens)
        return x.reshape(n, -1, width_of_tokens)


class ClassNorm(nn.Module):
    """(N, L, D) -> (N, D), the first token behind a norm that sees nothing else."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x[:, :1]).mean(1)


class Scale(nn.Module):
    """Multiplies by a number.

    Args:
        factor: the number.
    """

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class ChannelsLast(nn.Module):
    """(N, C, H, W) -> (N, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class MapMean(nn.Module):
    """(N, h, w, D) -> (N, D), the mean as a model takes it whose maps lie channels first in memory."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
        return x.reshape(len(x), -1, x.shape[3]).mean(1)


class ClassToken(nn.Module):
    """(N, L, D) -> (N, D), the first token."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


class ClassAndMean(nn.Module):
    """(N, prefix + L, D) -> (N, 2 D): the first token, then the mean of those behind the prefix (DINOv2)."""

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, 0], x[:, self.prefix :].mean(1)], 1)


class MeanBehind(nn.Module):
    """(N, prefix + L, D) -> (N, D): the mean of the tokens behind the prefix.

    Args:
        prefix: tokens.
    """

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.prefix :].mean(1)


class Mean(nn.Module):
    """The mean over all positions.

    Args:
        axes: of the positions.
    """

    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.axes)


class TokenPool(_Wrapper):
    """Swin's pooling over tokens: (N, h, w, D) -> (N, D)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x.flatten(1, 2).transpose(1, 2)).flatten(1)


def _encodes(row: nn.Module) -> bool:
    """Whether its classifiers are none."""
    return not any(True for _ in row.classifier.parameters())  # type: ignore[union-attr, operator]


def two_token_head(row: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
    """DeiT with a teacher: class and distillation token, a classifier each, averaged; the features are averaged, too.

    What each classifier gives is told besides.

    Args:
        row: whose pool is left out, and whose classifier is two.
        x: (N, 2 + L, D).
    """
    if _encodes(row):
        return (x[:, 0, :] + x[:, 1, :]) / 2, None, {}
    of_class, of_teacher = row.classifier  # type: ignore[misc]
    logits = {"class_logits": of_class(x[:, 0, :]), "distillation_logits": of_teacher(x[:, 1, :])}
    return (x[:, 0] + x[:, 1]) / 2, (logits["class_logits"] + logits["distillation_logits"]) / 2, logits


def averaged_head(row: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
    """Two classifiers of one feature, averaged; what each of them gives is told besides.

    Args:
        row: whose classifier is two.
        x: output of the norm.
    """
    features = row.pool(x)  # type: ignore[operator]
    if _encodes(row):
        return (features + features) / 2, None, {}  # as the network adds what its two classifiers would give
    of_class, of_teacher = row.classifier  # type: ignore[misc]
    logits = {"class_logits": of_class(features), "distillation_logits": of_teacher(features)}
    return features, (logits["class_logits"] + logits["distillation_logits"]) / 2, logits


def normed_head(row: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """LeViT with a teacher: two classifiers of a norm and a linear layer each, averaged; the features are what the
    linear layers are given, averaged too.

    Args:
        row: whose classifier is two.
        x: output of the norm.
    """
    pooled = row.pool(x)  # type: ignore[operator]
    features = [classifier.batch_norm(pooled) for classifier in row.classifier]  # type: ignore[union-attr]
    each = [classifier.linear(f) for classifier, f in zip(row.classifier, features, strict=True)]  # type: ignore[arg-type]
    logits = {"class_logits": each[0], "distillation_logits": each[1]}
    return (features[0] + features[1]) / 2, (each[0] + each[1]) / 2, logits


def grid_of(tokens: int, expected: tuple[int, int]) -> tuple[int, int]:
    """The grid of that many tokens: the expected one, or a square.

    Raises:
        FBTError: if it is neither.
    """
    if tokens == expected[0] * expected[1]:
        return expected
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise FBTError(f"{tokens} patches are neither a square nor the {expected[0]}x{expected[1]} of image_size")
    return side, side


def _first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
