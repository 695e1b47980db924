"""What ends a run, in one line that says how to go on."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.runner import EpochBasedTrainLoop

from ..console import relative
from ..errors import ConfigError, FBTError, Interrupted, PluginError, Told, one_line, text_of
from .checkpoints.files import read_checkpoint
from .hooks.checkpoints import AtomicCheckpointHook, not_finite
from .hooks.loss_guard import NotFinite
from .loaders import ADD_RESIZE
from .optim.wrapper import AlwaysOverflows
from .training_mode import ONE_IMAGE, is_of_one_image
from .training_run import TrainingRun

_NO_MEMORY = ("can't allocate memory", "Cannot allocate memory", "std::bad_alloc", "can't start new thread")
"""How torch, the system and Python say that there is no memory."""


@contextmanager
def in_one_line(runner: TrainingRun) -> Iterator[None]:
    """Turns what ends a run into one line: what was wrong, and which checkpoint holds the last good state.

    Raises:
        FBTError: for losses that are not finite, files that cannot be read or written, memory that is full, and
            processes that are gone, and whatever a plugin's code raises; anything else comes as it is.
    """
    try:
        yield
    except NotFinite as error:
        try:
            then = _after_nan(runner, error.iteration)
        except OSError as failed:
            then = f"what was before it could not be saved ({one_line(failed)}); {_last_checkpoint(runner)}"
        raise FBTError(f"{error}; {then}") from None
    except Interrupted:
        raise
    except Told as told:  # before or after the steps, in which the stop hook looks for signals
        name = signal.Signals(told.signal).name
        raise Interrupted(f"stopped by {name}; {_last_checkpoint(runner)}", told.signal) from None
    except AlwaysOverflows as error:
        names = {id(p): name for name, p in runner.distiller.named_parameters()}
        where = f" (first of {names[id(error.parameters[0])]})" if error.parameters else ""
        raise FBTError(
            f"{error}{where}; try --amp bf16, or lower the learning rate; {_last_checkpoint(runner)}"
        ) from None
    except FBTError as error:
        cause = error.__cause__ if isinstance(error, PluginError | ConfigError) else None  # what a plugin's code raised
        if cause is not None and "CUDA error" in text_of(
            cause
        ):  # what a GPU reports may have come from anything that was started before
            raise cause from None  # type: ignore[misc]
        known = _known(cause, runner.distributed) if isinstance(cause, Exception) else None
        if cause is None and ((hook := runner.hook(AtomicCheckpointHook)) is None or hook.saved < 0):
            raise
        raise FBTError("\n".join([known] if known else error.lines()) + f"; {_last_checkpoint(runner)}") from error
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise FBTError(f"{error.strerror or one_line(error)}{where}; {_last_checkpoint(runner)}") from error
    except Exception as error:
        known = _known(error, runner.distributed)
        if known is None:
            raise
        raise FBTError(f"{known}; {_last_checkpoint(runner)}") from error


def _known(error: Exception, distributed: bool) -> str | None:
    """What an error means to a user; None where it may mean anything."""
    if is_of_one_image(error):
        return ONE_IMAGE
    if not isinstance(error, RuntimeError | MemoryError):
        return None
    text = text_of(error)
    if "stack expects each tensor to be equal size" in text:
        return f"the images of a batch have different sizes; {ADD_RESIZE}"
    if isinstance(error, torch._dynamo.exc.TorchDynamoException):  # torch.compile has no public error class
        return f"compile: it fails ({one_line(error)}); set compile=None"
    if isinstance(error, torch.OutOfMemoryError):
        return "the GPU's memory is full; lower train_dataloader.batch_size, or try --amp bf16"
    if isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY):
        lower = "lower train_dataloader.batch_size or num_workers"
        return f"memory is full, or limited (ulimit -v; {one_line(error)[:120]}); {lower}"
    if "DataLoader worker" in text:
        return f"a worker process is gone ({one_line(error)}); lower num_workers if memory was short"
    if distributed and re.search("timed? ?out", text, re.IGNORECASE):
        return f"another process of this job hangs, or is gone ({one_line(error).rsplit('] ', 1)[-1][:120]})"
    if distributed and "Connection" in text:
        return f"another process of this job is gone ({one_line(error).rsplit('] ', 1)[-1]})"
    return None


def _last_checkpoint(runner: TrainingRun, then: str = "go on with --resume") -> str:
    """The newest checkpoint that is whole and finite, and what then: how to go on from it."""
    hook = runner.hook(AtomicCheckpointHook)
    if hook is None or hook.last_ckpt is None:
        return "nothing was saved yet"
    try:
        state = read_checkpoint(hook.last_ckpt)["state_dict"]
    except FBTError as error:
        return f"nothing to go on from is left: {error}"
    if not _all_finite(state.values()):
        return f"{relative(hook.last_ckpt)} was saved, but what is in it is not finite"
    return f"{relative(hook.last_ckpt)} is whole; {then}"


def _all_finite(values: Iterable[Any]) -> bool:
    return all(bool(v.isfinite().all()) for v in values if v.is_floating_point())


def _after_nan(runner: TrainingRun, iteration: int) -> str:
    """Saves the weights from before an iteration, since when nothing was updated; says what to do.

    Nothing is saved where the model has more than weights that steps change: that is from after the iteration.
    """
    hint = "lower the learning rate and train into another folder"
    if (hook := runner.hook(AtomicCheckpointHook)) is None:
        return f"nothing was saved (default_hooks.checkpoint is None); {hint}"
    again = f"from there the same settings come to it again: mend that loss and go on with --resume, or {hint}"
    if bad := not_finite(runner.distiller):
        return f"{bad} is not finite either: {_last_checkpoint(runner, again)}"
    group_start = getattr(runner.optim_wrapper, "group_start", None)  # mmengine's own wrapper updates as it goes
    if group_start is None or (start := group_start(iteration)) == hook.saved or runner.has_moved():
        return f"nothing was saved yet; {hint}" if hook.last_ckpt is None else _last_checkpoint(runner, again)
    runner.rewind(start, iteration)
    loop: Any = runner.train_loop
    epoch = start // len(loop.dataloader) if isinstance(loop, EpochBasedTrainLoop) else 0
    hook.save_now(runner, epoch, start)
    return f"{relative(str(hook.last_ckpt))} is from before it; {again}"
