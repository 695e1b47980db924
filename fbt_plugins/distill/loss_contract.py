"""What a loss may ask of the models it compares, and what it owes: one scalar with a gradient."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, is_count, nearest, short
from ..models.shapes import StageSpec
from ..registry.registries import LOSSES

NEEDS = ("same_width", "stages", "student_stages", "student_extra", "min_batch", "labels", "logits")


@dataclass(frozen=True)
class ModelInfo:
    """What an edge is told about a model at either end.

    Attributes:
        specs: outputs of its stages; empty where it offers none to losses.
        num_features: width of its features.
        others: further widths that they have in some steps: of a fusion model whose splices end in both models.
        extra: what it tells besides, in ``Knowledge.extra``.
        encoder: whether it has no classifier, and so no logits.
    """

    specs: Sequence[StageSpec]
    num_features: int
    others: Sequence[int] = ()
    extra: Collection[str] = ()
    encoder: bool = False

    @property
    def widths(self) -> list[int]:
        """All widths of its features."""
        return [self.num_features, *self.others]


def loss_needs(loss: Any, kind: str) -> Mapping[str, Any]:
    """What a loss says it needs of the models, once it was seen to be readable.

    Args:
        loss: any loss; most need nothing.
        kind: the name that it is registered under, for messages.

    Raises:
        PluginError: if ``needs`` is no dict, has a key that nobody reads, or a value that cannot be read.
    """
    needs = getattr(loss, "needs", {})
    if not isinstance(needs, Mapping):
        raise LOSSES.fault(kind, f"has needs of {short(needs)}, not a dict such as {{'same_width': True}}")
    if foreign := [str(key) for key in needs if key not in NEEDS]:
        raise LOSSES.fault(kind, f"needs {foreign[0]!r}{nearest(foreign[0], NEEDS)}")
    for key in ("same_width", "labels", "logits"):
        if not isinstance(needs.get(key, False), bool):
            raise LOSSES.fault(kind, f"needs {key}={short(needs[key])}, not True or False")
    for key in ("stages", "student_stages"):
        stages = needs.get(key, ())
        if isinstance(stages, str) or not isinstance(stages, Iterable) or not all(map(is_count, stages)):
            raise LOSSES.fault(kind, f"needs {key}={short(stages)}, not stage numbers from 1 such as (3, 4)")
    if not is_count(needs.get("min_batch", 1)):
        raise LOSSES.fault(kind, f"needs min_batch={short(needs['min_batch'])}, not a number of images from 1")
    names = needs.get("student_extra", ())
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise LOSSES.fault(kind, f"needs student_extra={short(names)}, not names such as ('class_logits',)")
    return needs


def wanted_stages(needs: Mapping[str, Any]) -> tuple[set[int], set[int]]:
    """The stages that a loss looks at: of the receiver, and of the giver."""
    both = set(needs.get("stages", ()))
    return both | set(needs.get("student_stages", ())), both


def check_stages(wanted: Iterable[int], kind: str, where: str, model: str, info: ModelInfo) -> None:
    """Looks whether a model has the stages that a loss wants.

    Raises:
        ConfigError: if it has not that many.
    """
    count = len(info.specs)
    if lacking := [n for n in wanted if n > count]:
        has = f"has {count}" if count else "gives features and logits only"
        raise ConfigError(f"{where}: {kind} needs stage {min(lacking)} of the {model}, which {has}")


def check_extra(needs: Mapping[str, Any], kind: str, where: str, model: str, info: ModelInfo) -> None:
    """Looks whether a model tells what a loss wants of the student besides features and logits.

    Raises:
        ConfigError: if it does not.
    """
    if lacking := [name for name in needs.get("student_extra", ()) if name not in info.extra]:
        told = ", ".join(map(repr, sorted(info.extra))) or "features and logits only"
        raise ConfigError(f"{where}: {kind} needs {lacking[0]!r} of the {model}, which gives {told}")


def check_labels(kind: str, where: str, data_info: Mapping[str, int]) -> None:
    """Looks whether any training image has a label, for a loss that needs them.

    Raises:
        ConfigError: if it is known that none has.
    """
    if data_info.get("num_labelled") == 0:
        raise ConfigError(
            f"{where}: {kind} needs labels, and the training images have none: set it to None and let a teacher teach, "
            "or label some images (docs/guides/data.md)"
        )


def check_logits(kind: str, where: str, model: str, info: ModelInfo) -> None:
    """Looks whether a model has logits, for a loss that takes them.

    Raises:
        ConfigError: if it is an encoder.
    """
    if info.encoder:
        raise ConfigError(
            f"{where}: {kind} needs logits, and the {model} has no classifier (num_classes=0): set the loss to "
            "None, or take one of features"
        )


def set_up(loss: Any, receiver: ModelInfo, giver: ModelInfo | None, data_info: Mapping[str, int]) -> None:
    """Calls a loss's ``setup``, if it has one.

    Args:
        loss: any loss.
        receiver, giver: the models that it will compare; a task loss has no giver.
        data_info: ``{"num_classes": ..., "num_samples": ..., "num_labelled": ...}``; the widths of the two models'
            features join it.
    """
    if not hasattr(loss, "setup"):
        return
    widths = {"student_features": receiver.num_features}
    if giver is not None:
        widths["teacher_features"] = giver.num_features
    loss.setup(receiver.specs, giver.specs if giver else (), {**data_info, **widths})


def weighted(loss: Tensor, weight: float, *factors: Tensor) -> Tensor:
    """``weight * loss``, and the loss itself where the weight is 1 or it is nothing that could be weighted.

    Args:
        loss: what a loss returned.
        weight: a number.
        factors: scalars that it is multiplied by as well.
    """
    if not isinstance(loss, Tensor):
        return loss
    value = loss if weight == 1 else weight * loss
    for factor in factors:
        value = factor * value
    return value


def value_fault(value: object, device: torch.device) -> str | None:
    """What is wrong with a loss's value, as the rest of a sentence whose subject is the loss; None if nothing is.

    Args:
        value: what it returned.
        device: of what it was given.
    """
    if not isinstance(value, Tensor):
        return f"returned {short(value)}, not a scalar tensor"
    if value.ndim or not value.is_floating_point():
        kind = f"a tensor of shape {tuple(value.shape)}" if value.ndim else f"a scalar of {value.dtype}"
        return f"returned {kind}, not a scalar of a floating type: reduce it, by .mean() for example"
    if value.device != device:
        return f"returned a scalar on {value.device}, and was given what is on {device}: make no tensors elsewhere"
    if torch.is_grad_enabled() and not value.requires_grad:
        return "returned a scalar without gradient: it must be computed from what the student knows, not detached"
    return None


def leaves(value: Tensor) -> list[Tensor]:
    """The tensors that a value's gradient leads back to."""
    found: dict[int, Tensor] = {}
    seen, waiting = set(), [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            found[id(leaf)] = leaf
        waiting += [before for before, _ in node.next_functions]
    return list(found.values())


def out_of_reach(value: Tensor, module: nn.Module) -> list[str]:
    """Names of a module's trained parameters that a value's gradient does not lead back to."""
    reached = set(map(id, leaves(value)))
    return [name for name, p in module.named_parameters() if p.requires_grad and id(p) not in reached]


class StepLosses(Mapping[str, Tensor]):
    """The named, weighted losses of one step, and their sum under "loss", as they are on the device.

    They are one tensor, so that a loop can keep or read all of them at once.

    Attributes:
        names: of the losses.
        stacked: (number of losses,), without gradient.
        total: what is descended, with gradient.
    """

    def __init__(self, losses: Mapping[str, Tensor]) -> None:
        self.names = tuple(losses)
        stacked = torch.stack([value.float() for value in losses.values()])
        self.total, self.stacked = stacked.sum(), stacked.detach()

    def __getitem__(self, name: str) -> Tensor:
        return self.total.detach() if name == "loss" else self.stacked[self.names.index(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(("loss", *self.names))

    def __len__(self) -> int:
        return len(self.names) + 1
