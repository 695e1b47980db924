"""One folder, one run, and a lock that nobody has is free."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from runs import Build, run

from fbt_plugins.engine.run_lock import LOCK, one_run
from fbt_plugins.errors import FBTError
from fbt_plugins.files import locked


def test_a_second_run_is_told_whose_the_folder_is(config: Build, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "epoch_1.pth").write_bytes(b"the first run's")
    with one_run(tmp_path / "run"):
        whose = rf"process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(FBTError, match=rf"run: another run is in this folder; .* \({whose}\)$") as caught:
            run(config("run"))
        assert len(caught.value.lines()) == 1
    assert {path.name for path in (tmp_path / "run").glob("*.*")} >= {"epoch_1.pth"}
    assert not list((tmp_path / "run").glob("earlier_*")) and not (tmp_path / "run" / "config.py").exists()
    with one_run(tmp_path / "run"):
        pass


_HOLDER = """
import os, sys, time
from pathlib import Path
from fbt_plugins.files import locked
with locked(Path(sys.argv[1]), "taken", wait=False):
    if os.fork() == 0:  # a data worker, say
        print(os.getpid(), flush=True)
        time.sleep(60)
        os._exit(0)
    time.sleep(60)
"""


def test_a_killed_process_has_no_lock_even_where_its_workers_live_on(tmp_path: Path) -> None:
    path = tmp_path / LOCK
    command = [sys.executable, "-c", _HOLDER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        worker = int(holder.stdout.readline())
        try:
            with (
                pytest.raises(FBTError, match=rf"^taken \(process {holder.pid} on "),
                locked(path, "taken", wait=False),
            ):
                pass
            holder.kill()
            holder.wait()
            os.kill(worker, 0)
            with locked(path, "taken", wait=False):
                assert path.read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"
        finally:
            os.kill(worker, signal.SIGKILL)


def test_a_file_system_without_locks_is_told_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with one_run(tmp_path):
        assert "nothing keeps a second run out of this folder" in " ".join(capsys.readouterr().out.split())
