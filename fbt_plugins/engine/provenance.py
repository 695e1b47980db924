"""Where a number comes from: versions of what computed it, and the state of the code."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

import mmengine
import timm
import torch
import torchvision

from .. import __version__


def versions() -> dict[str, str]:
    """Of everything that a number may depend on."""
    modules = {"torch": torch, "torchvision": torchvision, "timm": timm, "mmengine": mmengine}
    return {"fbt_plugins": __version__, "python": platform.python_version()} | {
        n: m.__version__ for n, m in modules.items()
    }


def git_state() -> dict[str, Any] | None:
    """Commit of the checkout that this code is in, and whether anything but its docs was changed; None outside of one.

    Results that git keeps are in ``docs/``.
    """

    def git(*args: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(
            ["git", *args], cwd=folder, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "changed": bool(git("status", "--porcelain", ":/", ":(exclude,top)docs")),
        }
    except (OSError, subprocess.SubprocessError):
        return None
