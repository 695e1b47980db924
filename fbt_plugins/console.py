"""The terminal of a run: lines, warnings, numbers and paths as people read them. Only the first process speaks."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from mmengine.dist import is_main_process
from rich.console import Console
from rich.panel import Panel

# FORCE_COLOR, which Jupyter sets, makes a terminal of a pipe, and that gets each frame of a bar as a line.
console = Console(highlight=False, force_terminal=None if sys.stdout.isatty() else False)
if not console.is_terminal:
    console.width = 120  # a log file has no width of its own


def say(line: str) -> None:
    """One line."""
    if is_main_process():
        console.print(line, markup=False, soft_wrap=True)


def warn(headline: str, *lines: str) -> None:
    """A warning that cannot be overlooked."""
    if is_main_process():
        from rich.text import Text

        console.print(Panel(Text("\n".join((headline, *lines))), title="WARNING", border_style="bold red"))


def describe_device(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({torch.get_num_threads()} threads)"


def count(module: torch.nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())


def millions(number: int) -> str:
    return f"{number / 1e6:.2f} M" if number >= 1e6 else f"{number / 1e3:.1f} k"


def relative(path: str | Path) -> str:
    """A path as a user would type it from here."""
    short = os.path.relpath(path)
    return str(path) if short.startswith("..") else short
