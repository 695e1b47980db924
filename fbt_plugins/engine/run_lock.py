"""One folder, one run: two would move each other's checkpoints away and mix their metrics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mmengine.dist import broadcast_object_list, is_main_process

from ..console import relative, say
from ..errors import FBTError
from ..files import NoLocks, locked

LOCK = ".run.lock"


@contextmanager
def one_run(folder: Path) -> Iterator[None]:
    """Holds a run's folder; the first process of a job holds it for all of them, and all are refused together.

    Raises:
        FBTError: if another run is in the folder; the line says its process and host.
    """
    taken = f"{relative(folder)}: another run is in this folder; wait for it, or take another --work-dir"
    with ExitStack() as stack:
        refused: list[str | None] = [None]
        if is_main_process():
            try:
                stack.enter_context(locked(folder / LOCK, taken, wait=False))
            except NoLocks as error:
                say(f"{error}: nothing keeps a second run out of this folder")
            except FBTError as error:
                refused = [str(error)]
        broadcast_object_list(refused)
        if refused[0] is not None:
            raise FBTError(refused[0])
        yield
