"""What a step draws is a function of the run's seed and the iteration, and of the process only where it may be."""

from __future__ import annotations

import pytest
import torch
from runs import Build

from fbt_plugins.engine.hooks import step_seed as seeding
from fbt_plugins.engine.runner import DistillRunner
from fbt_plugins.randomness import derive_seed

SPLICES = {"model.fusion.splice": ["S1-3+T4", "S1-2+T3-4", "S1+T2-4"], "val_dataloader": None, "val_cfg": None}


def test_all_processes_draw_the_same_splices(config: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, list[tuple[int, int]]] = {}
    for rank in (0, 1):
        monkeypatch.setattr(seeding, "get_rank", lambda rank=rank: rank)
        runner = DistillRunner.from_cfg(config(f"rank_{rank}", **SPLICES, val_evaluator=None))
        draws = seen[rank] = []
        step = runner.model.train_step

        def watched(*args, step=step, model=runner.model, draws=draws, **kwargs):  # type: ignore[no-untyped-def]
            draws.append((model.step.splices[0], int(torch.randint(2**60, ()))))
            return step(*args, **kwargs)

        runner.model.train_step = watched
        runner.train()
    drawn = [[splice for splice, _ in draws] for draws in seen.values()]
    assert drawn[0] == drawn[1] == [derive_seed(derive_seed(3, step), 0) % 3 for step in range(12)]
    assert set(drawn[0]) == {0, 1, 2}
    assert not {number for _, number in seen[0]} & {number for _, number in seen[1]}  # dropout is each process's own
