"""An exponential moving average of the trained weights, which validation, the best checkpoint and the student use."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook
from torch import Tensor

from ...errors import ConfigError, FBTError
from ..training_run import TrainingRun

TRAINED = "trained_weights"
"""Where a checkpoint keeps the weights that training goes on with; its ``state_dict`` has the averages."""


class EMAHook(Hook):
    """Averages all trained weights after each update: ``average += (1 - d) (weight - average)``.

    d is ``decay``, at the beginning ``(1 + t) / (10 + t)`` after t iterations where that is less. BatchNorm statistics
    are those of the weights, not averaged. One kernel per operation however many weights there are, and no wait for the
    device; the teacher is not copied (mmengine's EMAHook does, and waits twice per step). The runner registers it where
    the config has ``ema``.

    Args:
        decay: part of the average that each update keeps.

    Raises:
        ConfigError: if it is not in [0, 1).
    """

    priority = "ABOVE_NORMAL"  # before the hooks that validate, save and export

    def __init__(self, decay: float = 0.9998) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"ema: decay must be in [0, 1), not {decay}; ema=None is off")
        self.decay = decay
        self._averages: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}
        self._names: dict[str, list[str]] = {}  # all names of each weight, for a state dict has tied weights under each

    def before_train(self, runner: TrainingRun) -> None:
        model = runner.distiller
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._weights = {name: p.data for name, p in trained.items()}
        names: dict[int, list[str]] = {}
        for name, p in model.named_parameters(remove_duplicate=False):
            names.setdefault(id(p), []).append(name)
        self._names = {name: names[id(p)] for name, p in trained.items()}
        start = self._averages or self._weights
        self._averages = {name: start[name].to(weight, copy=True) for name, weight in self._weights.items()}

    def after_train_iter(
        self, runner: TrainingRun, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        wrapper = runner.optim_wrapper
        if not wrapper.should_update():
            return
        averages, t = list(self._averages.values()), runner.iter + 1
        # Torch's own optimizers use these functions: private ones, but no public one takes a list of tensors.
        steps = torch._foreach_sub(list(self._weights.values()), averages)
        torch._foreach_mul_(steps, (1 - min(self.decay, (1 + t) / (10 + t))) * wrapper.trusted())
        torch._foreach_add_(averages, steps)

    def before_val_epoch(self, runner: TrainingRun) -> None:
        self._swap()

    def after_val_epoch(self, runner: TrainingRun, metrics: dict[str, float] | None = None) -> None:
        self._swap()

    def after_train(self, runner: TrainingRun) -> None:
        self._swap()

    def _swap(self) -> None:
        for name, weight in self._weights.items():
            kept = weight.clone()
            weight.copy_(self._averages[name])
            self._averages[name].copy_(kept)

    def before_save_checkpoint(self, runner: TrainingRun, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        names = [(name, self._averages[first]) for first, names in self._names.items() for name in names]
        checkpoint[TRAINED] = {name: state[name] for name, _ in names}
        state.update({name: average.cpu().clone() for name, average in names})

    def after_load_checkpoint(self, runner: TrainingRun, checkpoint: dict[str, Any]) -> None:
        if not runner.resuming:
            return
        if TRAINED not in checkpoint:
            raise FBTError("--resume: the checkpoint is of a run without an average of its weights; set ema=None")
        state = checkpoint["state_dict"]
        self._averages = {name: state[name] for name in checkpoint[TRAINED]}
        state.update(checkpoint[TRAINED])
