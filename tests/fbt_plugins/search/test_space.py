"""What a search chooses from, and what it takes from other machines and from one-shot runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import torch
from conftest import CNN
from mmengine.config import Config
from optuna.distributions import IntDistribution
from runs import builder
from torch import nn

from fbt_plugins import FUSIONS, StageSpec
from fbt_plugins.distill.distiller import Distiller
from fbt_plugins.distill.splice import Splice
from fbt_plugins.engine.check import check_config
from fbt_plugins.errors import ConfigError, FBTError
from fbt_plugins.jobs.study import Slot
from fbt_plugins.models.knowledge import Batch
from fbt_plugins.search.one_shot import state_of
from fbt_plugins.search.search import Search, Tried, space_of
from fbt_plugins.search.space import Choice, Fusions, Range

pytest.importorskip("optuna")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return builder(tmp_path)()


def space(config: Config, **entries: Any) -> Any:
    keys = {key.replace("__", "."): value for key, value in entries.items()}
    config.search = dict(space=keys, trials=3)
    return space_of(config)


@pytest.mark.slow
def test_every_splice_that_is_proposed_can_be_built(config: Config) -> None:
    found = space(config, model__fusion=dict(switches=(1, 2), strategies="all"))
    fusions = found.parameters["model.fusion"]
    assert isinstance(fusions, Fusions) and len(fusions.fitting) == 8 + 12
    assert len(found.grid()) == sum(map(len, fusions.fitting.values()))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(4):
        config.model.fusion = found.suggest(study.ask())["model.fusion"]
        assert check_config(config) is not None


def test_models_of_other_numbers_of_stages_are_joined_at_the_same_depth(tmp_path: Path) -> None:
    config = builder(tmp_path)(**{"model.teacher.depths": (1, 2, 2, 1), "model.teacher.stages": 6})
    found = space(config, model__fusion=dict(switches=1, strategies=[dict(type="L2GFusion")]))
    splices = list(found.parameters["model.fusion"].fitting)
    assert splices == [
        *("S1+T3-6", "S1-2+T4-6", "S1-3+T6", "S1-4+Thead"),
        *("T1+S2-4", "T1-2+S3-4", "T1-3+S3-4", "T1-4+S4", "T1-5+Shead", "T1-6+Shead"),
        "T1-5+S4",  # "auto", though it goes back a little
    ]
    assert "  T1-5+S4 (auto): L2GFusion" in found.lines()
    for splice in ("T1-4+S4", "T1-5+S4"):
        config.model.fusion = dict(type="L2GFusion", splice=splice)
        assert check_config(config) is not None


class Narrow:
    """A third party's strategy that joins one pair of stages only."""

    def build(self, student: Sequence[StageSpec], teacher: Sequence[StageSpec], splice: Splice) -> nn.ModuleDict:
        if str(splice) != "S1-3+T4":
            raise ConfigError("only S1-3+T4")
        (junction,) = splice.junctions
        return nn.ModuleDict(
            {junction.name: FUSIONS.build(dict(type="ConvL2G")).build(student, teacher, splice)[junction.name]}
        )


@pytest.fixture
def narrow() -> Iterator[None]:
    FUSIONS.register_module(name="Narrow", module=Narrow)
    yield
    FUSIONS.module_dict.pop("Narrow")


def test_a_third_partys_strategy_is_there_without_a_change(config: Config, narrow: None) -> None:
    fusions = space(config, model__fusion=dict(switches=1)).parameters["model.fusion"]
    assert [splice for splice, labels in fusions.fitting.items() if "Narrow" in labels] == ["S1-3+T4"]
    rows = fusions.grid()
    assert {"model.fusion.splice": "S1-3+T4", "model.fusion.type of S1-3+T4": "Narrow"} in rows
    assert not any(row.get("model.fusion.type") == "Narrow" for row in rows)  # where most splices are asked


def test_strategies_with_arguments_are_told_apart(config: Config) -> None:
    strategies = [dict(type="L2GFusion"), dict(type="L2GFusion", mlp_ratio=1.0)]
    fusions = space(config, model__fusion=dict(switches=1, strategies=strategies)).parameters["model.fusion"]
    assert fusions.fitting["S1-3+T4"] == ["L2GFusion", "L2GFusion(mlp_ratio=1.0)"]
    trial = optuna.trial.FixedTrial({"model.fusion.splice": "T1-3+S4", "model.fusion.type": "L2GFusion(mlp_ratio=1.0)"})
    assert fusions.suggest(trial) == dict(type="L2GFusion", mlp_ratio=1.0, splice="T1-3+S4")


def test_lists_and_ranges(config: Config) -> None:
    edges = [["teacher_to_fusion", "fusion_to_student"], ["teacher_to_student", "teacher_to_fusion"]]
    found = space(config, model__edges=edges, model__logit_loss__gamma=dict(low=1.0, high=2.0, step=0.5))
    assert found.parameters["model.edges"] == Choice("model.edges", edges)
    assert [tuple(row.values())[1] for row in found.grid()] == [1.0, 1.5, 2.0] * 2
    trial = optuna.trial.FixedTrial(
        {"model.edges": found.parameters["model.edges"].labels[0], "model.logit_loss.gamma": 1.5}
    )
    assert found.suggest(trial) == {"model.edges": edges[0], "model.logit_loss.gamma": 1.5}
    assert Range("n", 1, 4).grid() == [{"n": n} for n in (1, 2, 3, 4)]
    with pytest.raises(ConfigError, match="set a step"):
        Range("x", 0.1, 1.0).grid()


@pytest.mark.parametrize(
    ("entries", "line"),
    [
        (dict(model__fusoin=[1]), "search.space: model.fusoin=1: model: unknown key 'fusoin'; did you mean"),
        (dict(model__fusion=dict(swiches=1)), "search.space: model.fusion: unknown argument 'swiches'; did you mean"),
        (
            dict(model__fusion=dict(strategies=[dict(type="L2G")])),
            "search.space: model.fusion.strategies: 'L2G' is not",
        ),
        (
            dict(model__fusion=dict(switches=[1, 1])),
            "search.space: model.fusion.switches: different whole numbers from 1",
        ),
        (
            dict(model__fusion=dict(strategies=[dict(type="L2GFusion")] * 2)),
            "search.space: model.fusion.strategies: L2GFusion is there twice",
        ),
        (dict(model__logit_loss__gamma=dict(low=2.0, high=1.0)), "search.space: model.logit_loss.gamma: "),
        (dict(model__logit_loss__gamma=1.0), "search.space: model.logit_loss.gamma: a list of values"),
        (
            dict(model__edges=[["teacher_to_studen"]]),
            "search.space: model.edges=['teacher_to_studen']: model.edges: 'teacher_to_studen': there is no model",
        ),
        (dict(model__edges=[]), "search.space: model.edges: a list of different values"),
    ],
)
def test_what_is_wrong_is_one_line(config: Config, entries: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as refused:
        space(config, **entries)
    assert len(refused.value.problems) == 1 and refused.value.problems[0].startswith(line), refused.value


@pytest.mark.parametrize(
    "numbers",
    [
        Range("x", 1, 9, 2),
        Range("x", 1, 8, log=True),
        Range("x", 0, 1),
        Range("x", 0.5, 2, 0.5),
        Range("x", 0.1, 1, log=True),
    ],
)
def test_a_range_is_stored_as_what_it_is(numbers: Range) -> None:
    """A study that was stopped goes on only where its parameters have the same distributions."""
    trial = optuna.create_study().ask()
    value = numbers.suggest(trial)
    assert trial.distributions == {"x": numbers.distribution} and numbers.low <= value <= numbers.high
    assert type(value) is (int if isinstance(numbers.distribution, IntDistribution) else float)


# ---- one shot -------------------------------------------------------------------------------------------------------


Make = Callable[..., Distiller]


def test_the_state_of_one_of_several_splices_is_that_of_a_model_that_has_it_alone(
    make: Make, images: torch.Tensor, labels: torch.Tensor
) -> None:
    """Loaded strictly, and bit-equal; the student has BatchNorm, whose statistics each splice has of its own."""
    splices = ["S1-3+T4", "T1-3+S4", "T1-2+S3+T4", "T1-4+Shead"]
    several = make(CNN, splice=splices).train()
    for seed in range(8):
        several.step = several.plan(seed)
        several.losses(images, Batch(labels))
    expected = several.eval().predict(images, [*(f"fusion@{splice}" for splice in splices), "student"])
    for number, splice in enumerate(splices):
        alone = make(CNN, splice=splice)
        alone.load_state_dict(state_of(several, "fusion", number))
        found = alone.eval().predict(images, ["fusion", "student"])
        assert torch.equal(found["fusion"], expected[f"fusion@{splice}"]), splice
        assert torch.equal(found["student"], expected["student"]), splice


# ---- results from others --------------------------------------------------------------------------------------------


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
