"""Which of a folder's checkpoints is taken."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fbt_plugins.engine.checkpoints.files import find_resume
from fbt_plugins.errors import FBTError


def test_resume_takes_the_newest_whole_checkpoint(tmp_path: Path) -> None:
    whole = dict(meta=dict(epoch=1), state_dict={}, message_hub={})
    torch.save(whole, tmp_path / "epoch_1.pth")
    torch.save(whole, tmp_path / "epoch_2.pth")
    data = (tmp_path / "epoch_2.pth").read_bytes()
    (tmp_path / "epoch_10.pth").write_bytes(data[: len(data) // 2])
    assert find_resume(tmp_path, 4)[0].name == "epoch_2.pth"
    for name in ("epoch_1.pth", "epoch_2.pth"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(FBTError, match=r"all 3 checkpoints in .* are damaged; .* leave out --resume"):
        find_resume(tmp_path, 4)
