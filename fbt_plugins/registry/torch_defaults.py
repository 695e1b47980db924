"""What torch does for everyone in a process, held against what somebody's code made of it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.overrides import _get_current_function_mode_stack

_CPU = torch.device("cpu")


class TorchDefaults(NamedTuple):
    """Settings of the whole process that code of a plugin may change, and must not leave changed.

    Attributes:
        dtype: of new tensors.
        device: of new tensors.
        gradients: whether operations are recorded for gradients.
    """

    dtype: torch.dtype
    device: torch.device
    gradients: bool

    @classmethod
    def now(cls) -> TorchDefaults:
        """The settings as they are."""
        return cls(torch.get_default_dtype(), _default_device(), torch.is_grad_enabled())

    def restore(self) -> str:
        """Makes the settings what they were.

        Returns:
            What had been changed, as the rest of a sentence; empty where nothing was.
        """
        found = TorchDefaults.now()
        if found == self:
            return ""
        changes = []
        if found.dtype != self.dtype:
            torch.set_default_dtype(self.dtype)
            changes.append(f"made {found.dtype} torch's default dtype")
        if found.device != self.device:
            torch.set_default_device(None)
            if torch.get_default_device() != self.device:
                torch.set_default_device(self.device)
            changes.append(f"made {found.device} torch's default device")
        if found.gradients != self.gradients:
            torch.set_grad_enabled(self.gradients)
            how = "use `with torch.no_grad():`" if self.gradients else "use `with torch.enable_grad():`"
            changes.append(f"left torch's gradients switched {'off' if self.gradients else 'on'} ({how})")
        return " and ".join(changes) and f"{' and '.join(changes)}, for the whole program; that was undone"


def _default_device() -> torch.device:
    """``torch.get_default_device()``, which takes 6 us, each time a plugin's code is called; none is set as a rule."""
    return torch.get_default_device() if _get_current_function_mode_stack() else _CPU
