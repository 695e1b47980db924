"""Whose a checkpoint is: a run takes up its own, and says what differs in another's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.optim.scheduler import ConstantLR
from torch import nn
from torch.optim import SGD, Adam, AdamW

from fbt_plugins.data import FashionMNISTMini
from fbt_plugins.engine.checkpoints.identity import identity, refuse_another, taking_up
from fbt_plugins.engine.hooks.checkpoints import PlainCheckpointHook
from fbt_plugins.errors import FBTError


class Data:
    """Images of equal count, of which a fingerprint tells."""

    def __init__(self, images: str = "shoes") -> None:
        self.images = images

    def fingerprint(self, thorough: bool) -> str:
        return self.images


def a_run(
    optimizer: Callable[..., Any] = AdamW, groups: int = 1, schedules: int = 1, width: int = 3, **changes: Any
) -> Any:
    layers = [nn.Linear(2, width) for _ in range(2)]
    parameters = [p for layer in layers for p in layer.parameters()]
    size = len(parameters) // groups
    made = optimizer([dict(params=parameters[i * size : (i + 1) * size]) for i in range(groups)], lr=0.1)
    sum(p.sum() for p in parameters).backward()
    made.step()
    loader = SimpleNamespace(dataset=changes.pop("dataset", Data()), batch_size=changes.pop("batch_size", 8))
    loader = type("Loader", (SimpleNamespace,), {"__len__": lambda self: 10})(**vars(loader))
    values = dict(seed=0, world_size=1, train_dataloader=loader, optim_wrapper=SimpleNamespace(optimizer=made))
    return SimpleNamespace(**values | dict(param_schedulers=[ConstantLR(made)] * schedules) | changes)


def checkpoint_of(run: Any) -> dict[str, Any]:
    meta = dict(seed=run.seed, epoch=1, iter=10, **identity(run))
    schedules = [schedule.state_dict() for schedule in run.param_schedulers]
    return dict(
        meta=meta, optimizer=copy.deepcopy(run.optim_wrapper.optimizer.state_dict()), param_schedulers=schedules
    )


def test_its_own_is_taken() -> None:
    refuse_another(a_run(), checkpoint_of(a_run()), "a.pth")


def test_one_from_before_all_this_was_stored_is_taken() -> None:
    old = checkpoint_of(a_run())
    old["meta"] = dict(seed=0, epoch=1, iter=10, world_size=1, epoch_length=10)
    refuse_another(a_run(batch_size=4), old, "a.pth")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(seed=1), r"seed: 0 in the checkpoint, 1 here"),
        (dict(world_size=2), "processes: 1 in the checkpoint, 2 here"),
        (dict(batch_size=4), "batch size: 8 in the checkpoint, 4 here"),
        (dict(dataset=Data("bags")), "training images or labels differ"),
        (dict(optimizer=Adam), "optimizer: AdamW in the checkpoint, Adam here"),
        (dict(groups=2), r"groups of parameters: 4 in the checkpoint, 2 \+ 2 here"),
        (dict(schedules=2), "schedules: 1 in the checkpoint, 2 here"),
        (dict(schedules=0), "schedules: 1 in the checkpoint, 0 here"),
    ],
)
def test_another_runs_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(FBTError, match=rf"^--resume a\.pth: another run's \({says}\); for its weights set load_from$"):
        refuse_another(a_run(**options), checkpoint_of(a_run()), "a.pth")


def test_another_optimizer_is_seen_without_its_name() -> None:
    old = checkpoint_of(a_run(SGD))
    del old["meta"]["optimizer"]
    with pytest.raises(FBTError, match="the checkpoint's has 'dampening', AdamW not"):
        refuse_another(a_run(), old, "a.pth")


def edited(checkpoint: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    *keys, last = path.split("/")
    inner: Any = checkpoint
    for key in keys:
        inner = inner[int(key) if key.isdigit() else key]
    if value is None:
        del inner[int(last) if last.isdigit() else last]
    else:
        inner[int(last) if last.isdigit() else last] = value
    return checkpoint


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("meta/epoch", None),
        ("meta/iter", "10"),
        ("meta/iter", -1),
        ("optimizer", None),
        ("optimizer", [1]),
        ("optimizer/state", None),
        ("optimizer/state", []),
        ("optimizer/state/0", 3),
        ("optimizer/state/0/exp_avg", None),
        ("optimizer/state/0/exp_avg", torch.zeros(7)),
        ("optimizer/state/0/exp_avg", torch.zeros(3, 2).to_sparse()),
        ("optimizer/state/1/exp_avg_sq", torch.zeros(3, dtype=torch.int64)),
        ("optimizer/param_groups", "x"),
        ("optimizer/param_groups/0/params", None),
        ("optimizer/param_groups/0/params", [0]),
        ("optimizer/state/0/exp_avg", "x"),
        ("optimizer/state/0/step", torch.zeros(2)),
        ("optimizer/state/0/step", -1),
        ("optimizer/param_groups/0/lr", None),
        ("optimizer/param_groups/0/lr", float("nan")),
        ("optimizer/param_groups/0/eps", []),
        ("optimizer/param_groups/0/betas", None),
        ("param_schedulers", []),
        ("param_schedulers", 3),
    ],
)
def test_what_was_changed_by_hand_is_one_line(path: str, value: Any) -> None:
    with pytest.raises(FBTError, match=r"^--resume a\.pth: ") as caught:
        refuse_another(a_run(), edited(checkpoint_of(a_run()), path, value), "a.pth")
    assert len(caught.value.lines()) == 1


def test_what_only_mmengine_keeps_is_compared_or_made_anew() -> None:
    run = a_run()
    run.optim_wrapper.base_param_settings = dict(params=[torch.zeros(1)], lr=0.1)
    checkpoint = checkpoint_of(run)
    for wrong in (None, "x", dict(lr=None)):
        checkpoint["optimizer"]["base_param_settings"] = wrong
        with pytest.raises(FBTError, match=r"^--resume a\.pth: its optimizer"):
            refuse_another(run, checkpoint, "a.pth")
    hub = dict(runtime_info=dict(best_score=1.0), resumed_keys=dict(best_score="x"), log_scalars=3)
    PlainCheckpointHook().after_load_checkpoint(run, dict(message_hub=hub))
    assert hub == dict(runtime_info=dict(best_score=1.0), resumed_keys=dict(best_score=True), log_scalars={})


def test_whatever_a_part_raises_is_one_line() -> None:
    says = r"^--resume a\.pth: its schedules cannot be taken up \(KeyError: 'x'\)"
    with pytest.raises(FBTError, match=says), taking_up("a.pth", "schedules"):
        raise KeyError("x")


def test_data_sets_differ_by_images_and_by_labels() -> None:
    own, other, labels = (FashionMNISTMini("train", []) for _ in range(3))
    other.images = other.images.clone()
    other.images[0, 0, 0] ^= 1
    labels.labels = [1 - labels.labels[0], *labels.labels[1:]]
    found = {identity(a_run(dataset=dataset))["data"] for dataset in (own, other, labels)}
    assert len(found) == 3 and own.fingerprint() in found
