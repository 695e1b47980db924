"""Files that a crash leaves whole, and that several processes may write to."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import socket
import tempfile
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from mmengine.fileio import LocalBackend, register_backend

from .console import say
from .errors import FBTError, one_line


def write_atomic(path: str | Path, *data: bytes | memoryview | str) -> None:
    """Writes a file, from one or more parts, so that a crash at any moment leaves the old one or the new one, whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            for part in data:
                file.write(part.encode() if isinstance(part, str) else part)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync(path.parent)


def check_out(out: Path) -> None:
    """Looks whether a file or folder can be made, by making one that leaves no trace: rights tell root nothing.

    Raises:
        FBTError: if it cannot.
    """
    _check_place(out, f"--out {out}")


def check_file(file: Path, option: str) -> None:
    """Looks whether a file can be written, also over one that is there, before anything takes time.

    Args:
        file: as a user named it.
        option: by which.

    Raises:
        FBTError: if it cannot.
    """
    if file.is_dir():
        raise FBTError(f"{option} {file}: it is a folder; name a file")
    _check_place(file.parent, f"{option} {file}")


def _check_place(out: Path, what: str) -> None:
    place = out.absolute()
    try:
        while not place.exists():
            place = place.parent
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise FBTError(f"{what}: it cannot be written ({place}: {error.strerror})") from error


UNFINISHED = "unfinished"
"""Key of a summary.json that tells what failed after training; a finished run's has no such key."""


def read_json(path: Path) -> Any:
    """What a JSON file says.

    Raises:
        FBTError: if it is missing, cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FBTError(f"{path}: it cannot be read ({error.strerror})") from error
    except RecursionError:
        raise FBTError(f"{path}: it is nested too deeply to be read") from None
    except ValueError as error:
        raise FBTError(f"{path}: it is no JSON, or damaged ({one_line(error)})") from error


def read_summary(folder: str | Path) -> dict[str, Any]:
    """The results of a whole run: a summary.json in which nothing is missing.

    Raises:
        FBTError: if the run's folder has none.
    """
    path = Path(folder) / "summary.json"
    found = read_json(path)
    if not isinstance(found, dict) or UNFINISHED in found:
        raise FBTError(f"{path}: it is not that of a finished run")
    return found


def is_finished(folder: str | Path) -> bool:
    """Whether a run's folder has the results of a whole run."""
    try:
        read_summary(folder)
    except FBTError:
        return False
    return True


_SIGNATURE = b"fbt sha256:"
_ZIP_END, _ZIP_END_SIZE = b"PK\x05\x06", 22
"""How a zip archive's last record begins, and its size without a comment, whose length its last 2 bytes say."""


def signed(archive: bytes) -> tuple[memoryview, bytes]:
    """A zip archive, which ``torch.save`` writes, with the sha256 of its bytes as its comment, in two parts.

    Programs that know nothing of it, ``torch.load`` among them, read the archive as before.
    """
    if archive[-_ZIP_END_SIZE:-18] != _ZIP_END or archive[-2:] != b"\0\0":
        return memoryview(archive), b""
    body = memoryview(archive)[:-2]
    length = (len(_SIGNATURE) + 64).to_bytes(2, "little")
    digest = hashlib.sha256(body)
    digest.update(length)
    return body, length + _SIGNATURE + digest.hexdigest().encode()


def damage(path: Path) -> str | None:
    """What is wrong with the bytes of a zip archive; None where nothing is, and for a file that is no zip archive.

    Of one that is signed every byte counts; of another the checksums of its entries.

    Raises:
        OSError: if it cannot be read.
    """
    comment = len(_SIGNATURE) + 64
    size = path.stat().st_size
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
        file.seek(max(0, size - _ZIP_END_SIZE - comment))
        end = file.read()
        if end[-comment:].startswith(_SIGNATURE):
            file.seek(0)
            digest, left = hashlib.sha256(), size - comment
            while block := file.read(min(left, 1 << 20)):
                digest.update(block)
                left -= len(block)
            return None if digest.hexdigest().encode() == end[-64:] else "its sha256 is not the one it was written with"
    if not is_zip:
        return None
    if end[-_ZIP_END_SIZE:-18] != _ZIP_END:
        return "its end is missing"
    try:
        with zipfile.ZipFile(path) as archive:
            entry = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, ValueError, NotImplementedError, EOFError) as error:
        return one_line(error)
    return f"the checksum of {entry} differs" if entry else None


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


class NoLocks(FBTError):
    """A file system that knows no locks."""


class _Folder:
    """A folder that is open, as a file is."""

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def fileno(self) -> int:
        return self._handle

    def close(self) -> None:
        os.close(self._handle)


_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_held: set[TextIO | _Folder] = set()


def _forget_locks() -> None:
    """Closes a forked child's copies of the locks' files: a worker that outlives its parent must not keep them."""
    for file in _held:
        file.close()
    _held.clear()


os.register_at_fork(after_in_child=_forget_locks)


@contextmanager
def locked(path: Path, taken: str, wait: bool) -> Iterator[None]:
    """Holds a lock that one process has at a time; it is free again when that process is gone, however it went.

    Args:
        path: of the lock's file, which stays; with ``taken``, it says which process of which host had it last.
        taken: what to say where another process has it, with that process; nothing is said where it is empty.
        wait: for that process to end, once it is said; else it is the error line.

    Raises:
        FBTError: if it is taken and not waited for, or if it cannot be had here (:class:`NoLocks`, if nowhere in this
            file system).
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
            owner = " ".join(path.read_text(encoding="utf-8", errors="replace").split())[:200] if taken else ""
            whose = f"{taken} ({owner})" if owner else taken
            if not wait:
                raise FBTError(whose) from None
            if taken:
                say(f"{whose}: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            kind = NoLocks if error.errno in _NO_LOCKS else FBTError
            raise kind(f"{path}: it cannot be locked ({error.strerror})") from error
        _held.add(file)
        try:
            if taken:
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
                file.flush()
            yield
        finally:
            _held.discard(file)


@contextmanager
def own_folder(folder: Path, kind: str) -> Iterator[Path]:
    """A new folder beside another, for what will become that one; it is removed at the end, if it is still there.

    What a killed process leaves of it is known by being nobody's: see :func:`remove_dead_folders`.

    Args:
        folder: which the new one will become.
        kind: the end of its name.
    """
    while True:
        made = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}{kind}")
        made.mkdir(parents=True)
        held = _Folder(made)
        with suppress(OSError):  # a file system without locks of folders: nothing is ever removed there
            fcntl.flock(held, fcntl.LOCK_EX)
        if made.is_dir():
            break
        held.close()  # taken for a dead one before it was locked
    _held.add(held)
    try:
        yield made
    finally:
        _held.discard(held)
        shutil.rmtree(made, ignore_errors=True)
        held.close()


def remove_dead_folders(folder: Path, kind: str) -> None:
    """Removes what killed processes left of :func:`own_folder`."""
    for path in folder.parent.glob(f".{glob.escape(folder.name)}.*{kind}"):
        with suppress(OSError):
            held = _Folder(path)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                held.close()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@register_backend("atomic", force=True)
class AtomicBackend(LocalBackend):
    """mmengine's local files, written atomically, checkpoints signed."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        write_atomic(filepath, *signed(obj))
