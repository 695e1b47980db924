"""Which device a run is on."""

from __future__ import annotations

import ctypes
import os
import time
from contextlib import suppress

import torch

from ..errors import ConfigError

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def keep_freed_memory() -> None:
    """Lets this process keep the memory that a training step frees, for the next step.

    glibc gives large buffers back to the system, which clears them before it hands them out again; that took 5 % of the
    flagship's step on a CPU (docs/results/speed.md). Other C libraries are left as they are.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)


def resolve_device(name: str | None, distributed: bool = False) -> torch.device:
    """The device of a name; None is the first GPU if there is one, else the CPU.

    Args:
        name: "cpu", "cuda", "cuda:1", ...
        distributed: each process then has the GPU of its local rank.

    Raises:
        ConfigError: if there is no such device here; a run never falls back to another.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r}: not a device; write cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r}: only cpu and cuda are supported")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        index = int(os.environ.get("LOCAL_RANK", 0)) if distributed else device.index or 0
        if index >= count:
            here = f"it has {count} (cuda:0 to cuda:{count - 1})" if count else "it has none; use --device cpu"
            raise ConfigError(f"device {name!r}: this machine has no CUDA device {index}; {here}")
        return torch.device("cuda", index)
    return device


def slowdown(dtype: torch.dtype, device: torch.device) -> float:
    """How many times longer a matrix product takes in a precision than in float32, by the clock.

    A CPU without instructions for bf16 or fp16 takes up to ninety times longer.

    Args:
        dtype: of the product.
        device: a CPU; for a GPU this is 1, unmeasured.
    """
    if device.type != "cpu" or dtype is torch.float32:
        return 1.0

    def seconds(matrix: torch.Tensor) -> float:
        spent = []
        for _ in range(4):  # the first makes the kernel
            start = time.perf_counter()
            matrix @ matrix
            spent.append(time.perf_counter() - start)
        return min(spent)

    matrix = torch.ones(192, 192)
    return seconds(matrix.to(dtype)) / seconds(matrix)
