"""What hooks, loops and faults may ask of a run: the part of the runner that they rely on, as a type."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from torch import nn

from ..distill.distiller import Distiller

H = TypeVar("H")


class Checkpoints(Protocol):
    """The hook that saves: :class:`AtomicCheckpointHook`."""

    saved: int
    last_ckpt: Any
    rank_statistics: Any

    def save_now(self, runner: TrainingRun, epoch: int, iteration: int) -> None: ...


class TrainingRun(Protocol):
    """A :class:`DistillRunner`, seen from its hooks; mmengine's own attributes mean what they mean there.

    Attributes:
        model: the distiller, or its wrapper where there are several processes.
        resuming: whether it goes on from a checkpoint.
        tests: whether its config has a test split.
        train_data: the training data set, from when the model is built.
    """

    cfg: Config
    work_dir: str
    model: Any
    device: torch.device
    optim_wrapper: Any
    param_schedulers: Any
    message_hub: Any
    visualizer: Any
    timestamp: str

    @property
    def distiller(self) -> Distiller:
        """The distiller itself, whatever wraps it."""

    @property
    def resuming(self) -> bool: ...

    @property
    def tests(self) -> bool: ...

    @property
    def rate_scale(self) -> float:
        """What ``auto_scale_lr`` has multiplied the learning rate by."""

    @property
    def total_batch(self) -> int:
        """Images of one update."""

    @property
    def train_data(self) -> Any: ...

    @property
    def seconds(self) -> float:
        """Of training so far, with those before a resume."""

    def start_clock(self) -> None:
        """Begins to count seconds."""

    @property
    def distributed(self) -> bool: ...

    @property
    def seed(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    @property
    def iter(self) -> int: ...

    @property
    def epoch(self) -> int: ...

    @property
    def max_iters(self) -> int: ...

    @property
    def max_epochs(self) -> int: ...

    @property
    def train_loop(self) -> Any: ...

    @property
    def val_loop(self) -> Any: ...

    @property
    def test_loop(self) -> Any: ...

    @property
    def train_dataloader(self) -> Any: ...

    @property
    def val_dataloader(self) -> Any: ...

    @property
    def hooks(self) -> list[Hook]: ...

    def hook(self, kind: type[H]) -> H | None:
        """The first hook of a class."""

    @property
    def checkpoints(self) -> Checkpoints:
        """The hook that saves."""

    def call_hook(self, fn_name: str, **kwargs: Any) -> None: ...

    @property
    def teacher_metrics(self) -> dict[str, float]:
        """The teacher's on the validation set, evaluated once; empty without a teacher or a validation set."""

    def check_losses(self, done: int) -> None:
        """Reads the losses since the last interval, and raises where one was not finite."""

    def has_moved(self) -> bool:
        """Whether steps have changed more than the weights: statistics, or what losses remember."""

    def rewind(self, iteration: int, bad: int) -> None:
        """Takes schedules and losses back to before an iteration, after a later one was bad."""

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None: ...

    def load_checkpoint(self, filename: str) -> dict[str, Any]:
        """Loads a checkpoint of ours; its names and shapes must fit."""

    def resume(self, filename: str) -> None:
        """Takes up a run at the iteration of a checkpoint."""


def unwrapped(model: nn.Module) -> Any:
    """The distiller itself, whatever wraps it."""
    return getattr(model, "module", model)
