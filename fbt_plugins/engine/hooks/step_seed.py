"""Randomness without state: each step's is a function of (seed, rank, iteration), so nothing has to be saved."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ...randomness import derive_seed
from ..training_run import TrainingRun


@HOOKS.register_module()
class StepSeedHook(Hook):
    """Seeds dropout, stochastic depth and batch mixing before each training step, and tells the model where it is.

    What the model draws is the same in all processes, for they train its parameters together; and so is its progress,
    the fraction of all iterations that are done.
    """

    priority = "VERY_HIGH"

    def before_train(self, runner: TrainingRun) -> None:
        self._rank, self._loop = get_rank(), runner.train_loop
        self._model = runner.distiller

    def before_train_iter(self, runner: TrainingRun, batch_idx: int, data_batch: Any = None) -> None:
        seed = derive_seed(runner.seed, self._rank, self._loop.iter)
        seed_all(seed)
        if self._model.data_preprocessor.mixing is not None:
            self._model.data_preprocessor.step_seed = seed
        done = self._loop.iter
        self._model.step = self._model.plan(derive_seed(runner.seed, done), done / self._loop.max_iters)


def seed_all(seed: int) -> None:
    """Seeds torch on all devices, ``random`` and ``numpy.random``.

    ``torch.manual_seed`` does the same but takes 150 us where CUDA is not in use: it notes its caller's traceback.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
