"""Files that a crash leaves whole, and that several processes may write to."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

from .console import say
from .errors import FBTError


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Writes a file so that a crash at any moment leaves the old one or the new one, whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync(path.parent)


def append_line(path: str | Path, line: str) -> None:
    """Adds a line to a file that several processes of this machine may add to; one that is there is not added again.

    A write that fails leaves the file as it was. A crash in the middle leaves at most this one line cut short, and the
    next one begins after it.

    Raises:
        FBTError: if it cannot be written.
    """
    path, data = Path(path), line.encode()
    with locked(path, "", wait=True):
        try:
            with path.open("r+b", buffering=0) as file:
                old = file.readall()
                if data in old.split(b"\n"):
                    return
                rest = memoryview((b"" if not old or old.endswith(b"\n") else b"\n") + data + b"\n")
                try:
                    while rest:
                        rest = rest[file.write(rest) :]
                    os.fsync(file.fileno())
                except BaseException:
                    file.truncate(len(old))
                    raise
            if not old:
                _sync(path.parent)
        except OSError as error:
            raise FBTError(f"{path}: it cannot be written ({error.strerror})") from error


def _sync(folder: Path) -> None:
    """Makes sure that a folder's new names are on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_halves(folder: Path) -> None:
    """Removes what `write_atomic` had begun in a folder when its process was killed."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, taken: str, wait: bool) -> Iterator[None]:
    """Holds a lock that one process has at a time; it is free again when that process is gone, however it went.

    Args:
        path: of the lock's file, which stays.
        taken: what to say where another process has it; nothing is said where it is empty.
        wait: for that process to end, once it is said; else it is the error line.

    Raises:
        FBTError: if it is taken and not waited for, or if it cannot be had here.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise FBTError(f"{path}: it cannot be locked ({error.strerror})") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise FBTError(taken) from None
            if taken:
                say(f"{taken}: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise FBTError(f"{path}: it cannot be locked ({error.strerror})") from error
        yield


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@register_backend("atomic", force=True)
class AtomicBackend(LocalBackend):
    """mmengine's local files, written atomically."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        write_atomic(filepath, obj)
