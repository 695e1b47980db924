"""What a model overwrites while it runs: outputs of its stages, and buffers that training changes.

Both are seen without weights, on the meta device, once for each model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._python_dispatch import TorchDispatchMode

from ..randomness import seeded
from .net_part import NetPart
from .weightless import call

aten = torch.ops.aten
_BATCH = 2
_NORMS = {aten.native_batch_norm.default: (3, 4, 5), aten.cudnn_batch_norm.default: (3, 4, 5)}
"""Where these have running mean and variance, and whether they update them, which their schemas leave out."""


@dataclass(frozen=True)
class Writes:
    """What a model overwrites.

    Attributes:
        outputs: numbers (from 1) of the stages whose output is overwritten by what runs behind them, as in-place
            activations do. Whoever keeps such an output keeps a copy.
        statistics: for each part, the stages and then the head, the names of its buffers that training changes.
    """

    outputs: frozenset[int]
    statistics: tuple[frozenset[str], ...]


def find_writes(shadow: Any, image_size: tuple[int, int]) -> Writes:
    """Runs a model's parts in both modes and notes what they write to.

    Where a part cannot run so in training, all that it might write to counts as written.

    Args:
        shadow: a copy of a StagedModel on the meta device; it is changed.
        image_size: (height, width) that it takes.
    """
    parts = [*shadow.stages, shadow.head]
    statistics = [_norms(part) for part in parts]
    overwritten: set[int] = set()
    for training in (False, True):
        outputs: list[int] = []
        shadow.train(training)
        x: Any = torch.empty(_BATCH, shadow.in_chans, *image_size, device="meta")
        kept = []  # alive, so that no other tensor gets an output's memory
        for part, names in zip(parts, statistics, strict=True):
            before = _buffers(part)
            try:
                with torch.no_grad(), seeded(0), _Written() as written:
                    x = part(x)
            except Exception:  # a network's own code, on tensors without values: anything may come of it
                everything = [frozenset(_buffers(part)) for part in parts]
                return Writes(frozenset(range(1, len(parts))), tuple(everything))
            overwritten |= {i for i, storage in enumerate(outputs, 1) if storage in written.storages}
            if training:
                after = _buffers(part)
                names |= {
                    name
                    for name, buffer in before.items()
                    if after.get(name) is not buffer or _storage(buffer) in written.storages
                }
            if isinstance(x, Tensor):
                outputs.append(_storage(x))
                kept.append(x)
    return Writes(frozenset(overwritten), tuple(map(frozenset, statistics)))


class _Written(TorchDispatchMode):
    """Within it, ``storages`` collects the memory that operators write to, whatever view of it they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.storages.update(_storage(tensor) for tensor in _targets(function, args, kwargs or {}))
        return call(function, args, kwargs)


def _targets(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    if function in _NORMS:
        *buffers, training = _NORMS[function]
        found = [args[i] for i in buffers] if args[training] else []
    else:
        found = [args[i] if i < len(args) else kwargs.get(name) for i, name in _written_arguments(function)]
    for value in found:
        for tensor in value if isinstance(value, list | tuple) else (value,):
            if isinstance(tensor, Tensor):
                yield tensor


@cache
def _written_arguments(function: Any) -> tuple[tuple[int, str], ...]:
    """Place and name of the arguments that an operator writes to."""
    arguments = enumerate(function._schema.arguments)
    return tuple((i, a.name) for i, a in arguments if a.alias_info is not None and a.alias_info.is_write)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def places_of_buffers(part: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """All buffers of a part by name, each with the module that its code finds it in, and what it is called there."""
    found = {
        f"{prefix}.{name}" if prefix else name: (module, name)
        for prefix, module in part.named_modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    }
    return found | (part.direct_buffers() if isinstance(part, NetPart) else {})


def changed_buffers(parts: Sequence[nn.Module], writes: Writes) -> list[Tensor]:
    """The buffers that training changes.

    Args:
        parts: stages, then the head.
        writes: what they overwrite.
    """
    return [_buffers(part)[key] for part, names in zip(parts, writes.statistics, strict=True) for key in names]


def _buffers(part: nn.Module) -> dict[str, Tensor]:
    return {key: module._buffers[name] for key, (module, name) in places_of_buffers(part).items()}  # type: ignore[misc]


def _norms(part: nn.Module) -> set[str]:
    """Buffers of torch's own norms, changed or not: a run's files have always held them."""
    return {key for key, (module, _) in places_of_buffers(part).items() if isinstance(module, _NormBase)}
