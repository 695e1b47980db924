"""The processes of one run: who they are, and how they find each other."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import broadcast_object_list, is_distributed, is_main_process
from torch import nn

from ..console import relative, say
from ..errors import FBTError, end_at_once, typed
from ..files import NoLocks, locked

_VARIABLES = {
    "pytorch": {"RANK": "RANK", "WORLD_SIZE": "WORLD_SIZE", "LOCAL_RANK": "LOCAL_RANK"},
    "slurm": {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"},
    "mpi": {
        "RANK": "OMPI_COMM_WORLD_RANK",
        "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
        "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK",
    },
}
_HOW = {
    "pytorch": "torchrun --nproc_per_node 2 --no-python fbt train CONFIG --launcher pytorch",
    "slurm": "srun --ntasks-per-node 8 --gpus-per-task 1 fbt train CONFIG --launcher slurm",
    "mpi": "mpirun -np 2 -x MASTER_ADDR=HOST fbt train CONFIG --launcher mpi",
}


def find_processes(launcher: str) -> None:
    """Copies a launcher's environment variables to those that torch reads (RANK, MASTER_ADDR, ...).

    Raises:
        FBTError: if this process was not started by that launcher.
    """
    if launcher not in _VARIABLES:
        return
    end_at_once()
    missing = [theirs for theirs in _VARIABLES[launcher].values() if theirs not in os.environ]
    if missing:
        raise _without(launcher, missing[0])
    for ours, theirs in _VARIABLES[launcher].items():
        os.environ[ours] = os.environ[theirs]
    os.environ.setdefault("MASTER_PORT", "29500")
    if "MASTER_ADDR" not in os.environ:
        if launcher != "slurm":
            raise _without(launcher, "MASTER_ADDR")
        os.environ["MASTER_ADDR"] = _first_host(os.environ.get("SLURM_NODELIST", "localhost"))


def _without(launcher: str, variable: str) -> FBTError:
    return FBTError(f"--launcher {launcher}: no {variable} in the environment; start with {typed(_HOW[launcher])}")


def _first_host(nodes: str) -> str:
    try:
        command = ["scontrol", "show", "hostnames", nodes]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        raise FBTError(f"--launcher slurm: scontrol cannot tell the first of {nodes}; set MASTER_ADDR") from error


def join_processes(device: torch.device, **options: Any) -> None:
    """Makes the process group: gloo on CPUs, NCCL on GPUs; mmengine's own asks for a CUDA device whatever the backend.

    Args:
        device: of this process.
        options: of ``torch.distributed.init_process_group``; ``timeout`` in seconds.
    """
    from datetime import timedelta

    if "timeout" in options:
        options["timeout"] = timedelta(seconds=options["timeout"])
    backend = options.pop("backend", "nccl")  # mmengine's default, even where the device is a CPU
    backend = "gloo" if device.type == "cpu" and backend == "nccl" else backend
    torch.distributed.init_process_group(backend, **options)


def leave_processes() -> None:
    """Takes the process group apart, once all of its processes are done; does nothing without one.

    A process that just ends leaves its connections to the interpreter's exit, which now and then aborts.
    """
    if is_distributed():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def allow_open_files(workers: int) -> None:
    """Makes sure that data workers can talk to this process; with too few open files torch waits for them forever.

    Raises:
        FBTError: if the system allows too few.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = len(list(Path("/dev/fd").iterdir())) + 12 + 4 * workers
    if soft == resource.RLIM_INFINITY or soft >= need:
        return
    if hard != resource.RLIM_INFINITY and hard < need:
        what = f"{workers} workers need about {need} open files, and the system allows {hard} (ulimit -n)"
        raise FBTError(f"num_workers: {what}; raise that, or set num_workers=0")
    resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))


def freeze_unreached(distiller: Any) -> list[str]:
    """:meth:`Distiller.freeze_unreached` with blank images, as its preprocessor gives them.

    Args:
        distiller: on its device, not yet wrapped; every process calls this.

    Returns:
        The names of the parameters.
    """
    device = next(distiller.parameters()).device
    size = (2, distiller.student.in_chans, *distiller.image_size)
    batch = {
        "inputs": torch.zeros(size, dtype=torch.uint8, device=device),
        "labels": torch.zeros(2, dtype=torch.long, device=device),
        "index": torch.arange(2, device=device),
    }
    names: list[str] = distiller.freeze_unreached(**distiller.data_preprocessor(batch, True))
    return names


def wrap(model: Any, device: torch.device) -> nn.Module:
    """A distiller as each process of several trains it; only what is trained is synchronised."""
    from mmengine.model import MMDistributedDataParallel

    freeze_unreached(model)
    ids = [device.index] if device.type == "cuda" else None
    # What only losses that are off would reach has no gradient then, as in one process; it costs a look at the graph.
    waits = any(not edge.schedule.always_on for edge in model.edges.values())
    return MMDistributedDataParallel(
        module=model, device_ids=ids, broadcast_buffers=False, find_unused_parameters=waits
    )


LOCK = ".run.lock"


@contextmanager
def one_run(folder: Path) -> Iterator[None]:
    """Holds a run's folder; the first process of a job holds it for all of them, and all are refused together.

    Raises:
        FBTError: if another run is in the folder; the line says its process and host.
    """
    taken = f"{relative(folder)}: another run is in this folder; wait for it, or take another --work-dir"
    with ExitStack() as stack:
        refused: list[str | None] = [None]
        if is_main_process():
            try:
                stack.enter_context(locked(folder / LOCK, taken, wait=False))
            except NoLocks as error:
                say(f"{error}: nothing keeps a second run out of this folder")
            except FBTError as error:
                refused = [str(error)]
        broadcast_object_list(refused)
        if refused[0] is not None:
            raise FBTError(refused[0])
        yield
