"""The teacher cache's files: whole or not there."""

import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import typed

from fbt_plugins.engine.hooks.teacher_cache_files import UNFINISHED, open_cache, take, write_cache
from fbt_plugins.errors import FBTError
from fbt_plugins.files import remove_dead_folders
from fbt_plugins.models.knowledge import Knowledge

KEY = dict(views=1)
SHAPES = dict(features=(1, 4, 3), logits=(1, 4, 2))


def test_what_a_killed_builder_leaves_is_never_taken_for_a_cache(tmp_path: Path) -> None:
    folder = tmp_path / "caches" / "mine"

    def killed() -> Any:
        yield Knowledge(torch.ones(2, 3), torch.ones(2, 2))
        (half,) = (tmp_path / "caches").iterdir()
        assert half != folder and {p.name for p in half.iterdir()} == {"features.npy", "logits.npy"}
        half.rename(half.with_name(".mine.dead.tmp"))  # as a kill would leave it: nothing tidies up
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_cache(folder, KEY, SHAPES, killed())
    assert [p.name for p in (tmp_path / "caches").iterdir()] == [".mine.dead.tmp"]
    write_cache(folder, KEY, SHAPES, [Knowledge(torch.ones(2, 3), torch.ones(2, 2))] * 2)
    assert open_cache(folder, KEY, SHAPES)["logits"].tolist() == [[[1.0, 1.0]] * 4]
    write_cache(folder, KEY, SHAPES, [Knowledge(torch.zeros(4, 3), torch.zeros(4, 2))])  # another was faster
    assert open_cache(folder, KEY, SHAPES)["logits"].all() and len(list((tmp_path / "caches").iterdir())) == 2


def test_runs_that_build_it_at_the_same_time_leave_one_whole_cache(tmp_path: Path) -> None:
    folder, together = tmp_path / "mine", threading.Barrier(4)

    def build(value: int) -> None:
        def batches() -> Any:
            yield Knowledge(torch.full((4, 3), value), torch.full((4, 2), value))
            together.wait(10)

        write_cache(folder, KEY, SHAPES, batches())
        arrays = open_cache(folder, KEY, SHAPES)
        assert len({*np.unique(arrays["features"]), *np.unique(arrays["logits"])}) == 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(build, range(4)))
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("value", [1e5, float("nan")])
def test_numbers_beyond_half_precision_are_refused(tmp_path: Path, value: float) -> None:
    with pytest.raises(FBTError, match=r"the teacher's logits reach (100000|nan), and half precision ends at 65504"):
        write_cache(tmp_path / "mine", KEY, SHAPES, [Knowledge(torch.zeros(4, 3), torch.full((4, 2), value))])
    assert not list(tmp_path.iterdir())


def a_cache(folder: Path) -> Path:
    write_cache(folder, KEY, SHAPES, [Knowledge(torch.rand(4, 3), torch.rand(4, 2))])
    return folder


_KILLED = """
import os, signal, sys, torch
from pathlib import Path
from fbt_plugins.engine.hooks.teacher_cache_files import write_cache
from fbt_plugins.models.knowledge import Knowledge
def killed():
    yield Knowledge(torch.ones(2, 3), torch.ones(2, 2))
    os.kill(os.getpid(), signal.SIGKILL)
write_cache(Path(sys.argv[1]), {}, dict(features=(1, 4, 3), logits=(1, 4, 2)), killed())
"""


@pytest.mark.slow
def test_what_a_killed_builder_leaves_is_removed_and_a_living_ones_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "caches" / "mine"
    assert typed("-c", _KILLED, folder, cwd=tmp_path).code == -signal.SIGKILL
    (dead,) = folder.parent.iterdir()

    def living() -> Any:
        yield Knowledge(torch.ones(4, 3), torch.ones(4, 2))
        assert len(list(folder.parent.iterdir())) == 2
        remove_dead_folders(folder, UNFINISHED)
        (own,) = folder.parent.iterdir()
        assert own != dead

    write_cache(folder, KEY, SHAPES, living())
    assert [path.name for path in folder.parent.iterdir()] == ["mine"] and open_cache(folder, KEY, SHAPES)


def test_a_value_that_was_changed_is_told(tmp_path: Path) -> None:
    path = a_cache(tmp_path / "mine") / "logits.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(FBTError, match=r"its logits are not what was written \(sha256 differs\)"):
        open_cache(path.parent, KEY, SHAPES)
    stored = json.loads((path.parent / "key.json").read_text())
    del stored["sha256"]
    (path.parent / "key.json").write_text(json.dumps(stored))  # of before there were any
    open_cache(path.parent, KEY, SHAPES)


@pytest.mark.parametrize("left", [0, -1])
def test_a_file_that_is_cut_while_it_is_used_is_one_line_and_no_signal(left: int, tmp_path: Path) -> None:
    arrays = open_cache(a_cache(tmp_path / "mine"), KEY, SHAPES)
    where = np.zeros(2, int), np.array([1, 3])
    assert torch.equal(take(tmp_path / "mine", arrays, where)["logits"][1], torch.tensor(arrays["logits"][0, 3]))
    path = tmp_path / "mine" / "features.npy"
    os.truncate(path, left if left >= 0 else path.stat().st_size + left)
    with pytest.raises(FBTError, match=r"features\.npy: it was cut to [\d,]+ bytes while it was in use"):
        take(tmp_path / "mine", arrays, where)
