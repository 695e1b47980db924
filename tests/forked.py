"""Python processes that are forked off this one: real ones, but torch, whose import takes seconds, is there already."""

from __future__ import annotations

import importlib.util
import os
import runpy
import shutil
import signal
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from subprocess import TimeoutExpired
from typing import IO, NamedTuple

ROOT = Path(__file__).parents[1]


class Forked:
    """As ``subprocess.Popen`` of ``[sys.executable, "script.py", ...]``, or of ``"-m", "module"`` or ``"-c", "code"``.

    Args:
        command: what the process runs.
        cwd: its folder.
        env: its environment.
        stdout, stderr: files that it writes to; None for this process's own.
        start_new_session, preexec_fn: as there.

    Attributes:
        returncode: None while it runs; less than 0 where a signal ended it.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdout: IO | None = None,
        stderr: IO | int | None = None,
        start_new_session: bool = False,
        preexec_fn: Callable[[], None] | None = None,
    ) -> None:
        self.returncode: int | None = None
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                if start_new_session:
                    os.setsid()
                if preexec_fn is not None:
                    preexec_fn()
                _redirect(stdout, stderr)
                if env is not None:
                    os.environ.clear()
                    os.environ.update(env)
                if cwd is not None:
                    os.chdir(cwd)
                code = _run(list(command[1:]))
            finally:
                os._exit(code)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float = 240) -> int:
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                self.kill()
                raise TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.02)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _redirect(stdout: IO | None, stderr: IO | int | None) -> None:
    """Python's streams and those of the system, of this process."""
    if stdout is not None:
        os.dup2(stdout.fileno(), 1)
    if stderr is not None:
        os.dup2(1 if isinstance(stderr, int) else stderr.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))


def _run(arguments: list[str]) -> int:
    try:
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            sys.path.insert(0, "")
            _run_module(arguments[1])
        elif arguments[0] == "-c":
            sys.argv = ["-c", *arguments[2:]]
            exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
        return 0
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush(), sys.stderr.flush()


class Done(NamedTuple):
    """What a command left: its exit code, and what it wrote."""

    code: int
    out: str
    err: str


def _run_module(name: str) -> None:
    """As runpy does, which cannot where pytest imports the module's package in its own way."""
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    vars(main).update(__file__=spec.origin, __package__=spec.parent)
    exec(compile(Path(spec.origin).read_text(), spec.origin, "exec"), vars(main))


class Typed(Forked):
    """``python COMMAND...``, typed in a folder."""

    def __init__(self, *command: object, cwd: Path, env: Mapping[str, str] | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp())
        with (self.folder / "out").open("w") as out, (self.folder / "err").open("w") as err:
            super().__init__([sys.executable, *map(str, command)], cwd=cwd, env=env, stdout=out, stderr=err)

    def done(self) -> Done:
        """Waits for its end."""
        code = self.wait()
        texts = [(self.folder / name).read_text() for name in ("out", "err")]
        shutil.rmtree(self.folder)
        return Done(code, *texts)


def typed(*command: object, cwd: Path, env: Mapping[str, str] | None = None) -> Done:
    """``python COMMAND...``, typed in a folder, to its end."""
    return Typed(*command, cwd=cwd, env=env).done()
