"""The teacher cache's files: whole or not there."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fbt_plugins.engine.hooks.teacher_cache_files import open_cache, write_cache
from fbt_plugins.errors import FBTError
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
