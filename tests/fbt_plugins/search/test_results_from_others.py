"""What a search takes out of a database that others may write to."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("optuna")

from fbt_plugins.errors import FBTError
from fbt_plugins.jobs.study import Slot
from fbt_plugins.search.search import Search, Tried

GOOD: dict[str, Any] = dict(
    number=0,
    options={"model.logit_loss.gamma": 1.2},
    state="complete",
    figures={"student_top1": 80.0},
    epoch=None,
    seconds=1.0,
    folder="trials/0000",
)


def learnt(result: object) -> dict[Slot, Tried]:
    settings = SimpleNamespace(objectives=["student_top1"])
    space = SimpleNamespace(parameters={"model.logit_loss.gamma": None})
    search: Any = SimpleNamespace(tried={}, space=space, settings=settings)
    trial: Any = SimpleNamespace(number=4, user_attrs={"number": 0, "result": result})
    Search.learn(search, trial)
    return search.tried


def test_a_trial_of_another_machine_is_taken_over() -> None:
    assert learnt(json.dumps(GOOD)) == {Slot(0): Tried(**GOOD)}


@pytest.mark.parametrize(
    "change",
    [
        dict(number="0"),
        dict(options=[]),
        dict(options={"custom_imports": {"imports": ["evil"]}}),
        dict(state="lost"),
        dict(figures={}),
        dict(figures={"student_top1": "80"}),
        dict(folder=None),
        dict(more=1),
    ],
)
def test_a_result_that_is_none_is_one_line(change: dict[str, Any]) -> None:
    with pytest.raises(FBTError, match=r"^--storage: .*trial 4 ") as caught:
        learnt(json.dumps(GOOD | change))
    assert len(caught.value.lines()) == 1


@pytest.mark.parametrize("result", [None, 3, "{", "[]"])
def test_what_is_no_result_is_one_line(result: object) -> None:
    with pytest.raises(FBTError, match=r"^--storage: the result of trial 4 is none"):
        learnt(result)
