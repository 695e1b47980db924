"""Running statistics of several processes: averaged for validation, and each process's own kept for a resume."""

from __future__ import annotations

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor, nn
from torch import distributed as dist

from ...distill.fusion import FusionModel
from ...models.staged import StagedModel
from ...models.writes import changed_buffers
from ..training_run import TrainingRun

NAMES = ("running_mean", "running_var")


def statistics(model: nn.Module) -> list[Tensor]:
    """Running means and variances of all modules, and what else training changes in place of a gradient.

    These are a network's floating-point buffers that its forward pass writes to in training, and those that a fusion
    model keeps for itself. Counters are whole numbers and count alike in all processes.
    """
    changed: set[int] = set()
    for module in model.modules():
        if isinstance(module, StagedModel):
            changed |= {id(buffer) for buffer in changed_buffers([*module.stages, module.head], module.writes)}
        elif isinstance(module, FusionModel):
            changed |= {id(buffer) for buffer in module.statistics.buffers()}
    return [
        buffer
        for name, buffer in model.named_buffers()
        if buffer.is_floating_point() and (name.endswith(NAMES) or id(buffer) in changed)
    ]


def gather_statistics(model: nn.Module) -> list[list[Tensor]]:
    """Every process's statistics, on the CPU; empty for one process, whose statistics are in its state dict."""
    own = statistics(model) if get_world_size() > 1 else []
    if not own:
        return []
    flat = torch.cat([buffer.flatten() for buffer in own])
    gathered = [torch.empty_like(flat) for _ in range(get_world_size())]
    dist.all_gather(gathered, flat)
    sizes = [buffer.numel() for buffer in own]
    return [
        [part.reshape(buffer.shape).cpu() for part, buffer in zip(one.split(sizes), own, strict=True)]
        for one in gathered
    ]


def scatter_statistics(model: nn.Module, gathered: list[list[Tensor]]) -> None:
    """Gives a process back its own statistics."""
    if gathered:
        for buffer, saved in zip(statistics(model), gathered[get_rank()], strict=True):
            buffer.copy_(saved)


@HOOKS.register_module()
class SyncStatisticsHook(Hook):
    """Averages the processes' statistics at the end of an epoch and before a validation."""

    def after_train_epoch(self, runner: TrainingRun) -> None:
        self._average(runner.model)

    def before_val_epoch(self, runner: TrainingRun) -> None:
        self._average(runner.model)

    @staticmethod
    def _average(model: nn.Module) -> None:
        own = statistics(model)
        if own:
            flat = torch.cat([buffer.flatten() for buffer in own])
            dist.all_reduce(flat)
            flat /= get_world_size()
            for part, buffer in zip(flat.split([b.numel() for b in own]), own, strict=True):
                buffer.copy_(part.reshape(buffer.shape))
