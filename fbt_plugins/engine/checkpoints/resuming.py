"""How a run begins: from the start, with weights of another, or where its checkpoint was taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.dist import barrier, master_only

from ...config.options import as_file
from ...console import relative, say
from ...errors import FBTError, one_line
from ...files import remove_halves, write_atomic
from ...models.weights import misfit
from ..hooks.batchnorm import scatter_statistics
from ..hooks.checkpoints import AtomicCheckpointHook
from ..hooks.ema import TRAINED, EMAHook
from ..mmengine_patches import set_position
from ..training_run import TrainingRun
from .files import SECONDS, find_resume, read_checkpoint, set_aside, training_checkpoints
from .identity import refuse_another, taking_up
from .memories import MEMORIES, restore_memories


def begin(runner: TrainingRun) -> None:
    """Goes on from a checkpoint if the config asks for it, and lets the run's folder have what it begins with.

    Raises:
        FBTError: if there is none, or it is not this run's.
    """
    folder, length, source = Path(runner.work_dir), len(runner.train_dataloader), runner.cfg.get("resume", False)
    if source == "auto":
        source = bool(training_checkpoints(folder, length))
        if not source:
            say(f"--resume auto: no checkpoint in {relative(folder)}, so from the beginning")
    if source:
        path = Path(source) if isinstance(source, str) else find_resume(folder, length)[0]
        if not isinstance(source, str):
            _tell_damaged(folder, length, path)
        runner.resume(str(path))
        saving = runner.hook(AtomicCheckpointHook)
        best = None if saving is None else saving.best_so_far(runner, path)
        say(f"resume  {relative(path)} ({runner.iter:,} of {runner.max_iters:,} iterations done)")
        barrier()  # nothing is moved before all processes have read it
        _begin_folder(runner, runner.iter if path.resolve().parent == folder.resolve() else -1)
        if saving is not None:
            saving.go_on(runner, path, best)
    else:
        if weights := runner.cfg.get("load_from"):
            runner.load_checkpoint(weights)
        barrier()
        _begin_folder(runner, -1)


def _tell_damaged(folder: Path, length: int, path: Path) -> None:
    """Says which checkpoints are newer than the one that is taken, for then they are damaged."""
    found = [other for _, other in training_checkpoints(folder, length)]
    for other in found[found.index(path) + 1 :]:
        say(f"damaged {relative(other)} is left out")


@master_only
def _begin_folder(runner: TrainingRun, newer_than: int) -> None:
    """Sets aside what another run left, and writes ``config.py``, complete and re-runnable."""
    folder = Path(runner.work_dir)
    remove_halves(folder)
    earlier = set_aside(folder, len(runner.train_dataloader), newer_than)
    if earlier is not None:
        say(f"earlier {relative(earlier)} has what another run left in this folder")
    write_atomic(folder / "config.py", as_file(runner.cfg))


def take_up(runner: TrainingRun, filename: str, optimizer: bool, schedules: bool) -> float:
    """Puts a run where a checkpoint was taken.

    Args:
        runner: the run.
        filename: of the checkpoint.
        optimizer, schedules: whether these are taken up as well.

    Returns:
        The seconds that it has trained so far.

    Raises:
        FBTError: as :meth:`DistillRunner.resume` says.
    """
    checkpoint = runner.load_checkpoint(filename)
    if TRAINED in checkpoint and runner.hook(EMAHook) is None:
        raise FBTError(f"--resume {filename}: it is of a run with an average of its weights; set ema as it was")
    refuse_another(runner, checkpoint, filename)
    set_position(runner.train_loop, checkpoint["meta"]["epoch"], checkpoint["meta"]["iter"])
    with taking_up(filename, "message_hub"):
        runner.message_hub.load_state_dict(checkpoint["message_hub"])
        seconds = float(runner.message_hub.runtime_info.get(SECONDS, 0.0))
    if optimizer:
        with taking_up(filename, "optimizer"):
            runner.optim_wrapper.load_state_dict(checkpoint["optimizer"])
    if schedules:
        with taking_up(filename, "schedules"):
            for own, state in zip(runner.param_schedulers or [], checkpoint.get("param_schedulers", ()), strict=True):
                own.load_state_dict(state)
    with taking_up(filename, "statistics and memories"):
        scatter_statistics(runner.model, checkpoint.get("rank_statistics", []))
        restore_memories(runner.distiller, checkpoint.get(MEMORIES, {}))
    return seconds


def load(runner: TrainingRun, filename: str, strict: bool) -> dict[str, Any]:
    """Puts a checkpoint's weights into a run's distiller.

    Args:
        runner: the run.
        filename: of the checkpoint.
        strict: whether it must have all of them.

    Returns:
        The checkpoint.

    Raises:
        FBTError: if it is missing, damaged, or another model's.
    """
    checkpoint = read_checkpoint(filename)
    try:
        own = runner.distiller.state_dict()
        for state in (checkpoint["state_dict"], checkpoint.get(TRAINED) or {}):
            if own.keys() == state.keys() and (problem := misfit(own, state)):
                raise FBTError(f"checkpoint {filename!r} is not of this config's model: {problem}")
        runner.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        runner.distiller.load_state_dict(checkpoint["state_dict"], strict=strict)
    except RuntimeError as error:
        reason = " ".join(str(error).split(":", 1)[-1].split())
        raise FBTError(f"checkpoint {filename!r} is not of this config's model: {reason[:300]}") from error
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise FBTError(f"checkpoint {filename!r}: it was changed, or is damaged ({one_line(error)[:200]})") from error
    return checkpoint
