"""The processes of a run: how they leave each other."""

from __future__ import annotations

from pathlib import Path

from torch import distributed as dist

from fbt_plugins.engine.processes import leave_processes


def test_a_run_takes_its_process_group_apart(tmp_path: Path) -> None:
    leave_processes()  # one process has none
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    leave_processes()
    assert not dist.is_initialized()
