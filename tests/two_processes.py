"""What each of two processes does in tests/fbt_plugins/engine/test_processes.py."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mmengine.evaluator import Evaluator
from runs import builder
from torch import distributed as dist
from torch.utils.data import DataLoader

from fbt_plugins import load_plugins
from fbt_plugins.data import FashionMNISTMini, SeededSampler
from fbt_plugins.engine.hooks.batchnorm import statistics
from fbt_plugins.engine.hooks.topk import TopK, evaluate
from fbt_plugins.engine.metrics import KNN, Retrieval
from fbt_plugins.engine.runner import DistillRunner
from fbt_plugins.errors import run as command

BATCH_NORM = {
    "model.student.name": "resnet18",
    "model.student.num_classes": 10,
    "model.fusion.splice": "T1-3+S4",  # the fusion model runs a stage of the student again, with its own statistics
}
DRAWN = {"model.fusion.splice": ["S1-3+T4", "S1-2+T3-4", "S1+T2-4"]}
SCHEDULED = {
    "model.edges": [
        dict(name="teacher_to_student", begin=0.3),
        "teacher_to_fusion",
        dict(name="fusion_to_student", begin=0.3, ramp=0.4, gate="agreement"),
    ],
    "model.task_loss.begin": 0.3,
}
MIDDLE = {"default_hooks.checkpoint.by_epoch": False, "default_hooks.checkpoint.interval": 3}


def build(folder: Path, name: str, **options: Any) -> DistillRunner:
    config = builder(folder)(name, **options)
    config.launcher = "pytorch" if "RANK" in os.environ else "none"
    return DistillRunner.from_cfg(config)


def gradients(runner: DistillRunner, draw: int | None = None, progress: float | None = None) -> dict[str, torch.Tensor]:
    """Of the first batch of the first epoch, in the step that draws a splice by this number, at this progress."""
    runner.train_dataloader.sampler.set_epoch(0)
    batch = next(iter(runner.train_dataloader))
    distiller = runner.distiller
    distiller.train()
    distiller.zero_grad()
    splices = tuple((draw or 0) % len(fusion.splices) for fusion in distiller.fusions.values())
    distiller.step = replace(distiller.plan(0, progress), splices=splices)
    data = distiller.data_preprocessor(batch, True)
    distiller.parse_losses(runner.model(**data, mode="loss"))[0].backward()
    return {n: p.grad for n, p in distiller.named_parameters() if p.grad is not None}


def save(folder: Path, name: str, value: Any) -> None:
    torch.save(value, folder / f"{name}_{os.environ.get('RANK', 0)}.pt")


def loader(count: int) -> DataLoader[Any]:
    images = FashionMNISTMini("val", transforms=[dict(type="Pad", padding=2)])
    images.labels = images.labels[:count]
    return DataLoader(images, 50, sampler=SeededSampler(images, shuffle=False))


def accuracy(runner: DistillRunner) -> dict[str, float]:
    """On 333 images, which two processes cannot share evenly."""
    return evaluate(runner.model, loader(333), Evaluator([TopK()]), ["student", "fusion"])


def figures_of_features(runner: DistillRunner) -> dict[str, float]:
    """By a bank that two processes cannot share evenly either."""
    knn = KNN(bank={})
    knn.bank_loader = loader(77)
    return evaluate(runner.model, loader(33), Evaluator([knn, Retrieval()]), runner.distiller.names)


def check_gradients(folder: Path) -> None:
    """And that parameters which no loss reaches do not stop anything."""
    whole = build(folder, "gradients", **{"train_dataloader.batch_size": 4})
    save(folder, "figures_of_features", figures_of_features(whole))
    save(folder, "gradients", gradients(whole))
    edges = {"model.edges": ["teacher_to_student", "fusion_to_student"]}  # ablation C: nothing trains L2G
    save(folder, "unreached", gradients(build(folder, "unreached", **{"train_dataloader.batch_size": 4}, **edges)))
    drawn = build(folder, "drawn", **{"train_dataloader.batch_size": 4}, **DRAWN)
    save(folder, "drawn", gradients(drawn, draw=1))
    save(folder, "drawn_next", gradients(drawn, draw=2))  # which DDP refuses if a gradient was missing before
    scheduled = build(folder, "scheduled", **{"train_dataloader.batch_size": 4}, **SCHEDULED)
    save(folder, "off", gradients(scheduled, progress=0.1))
    save(folder, "rising", gradients(scheduled, progress=0.5))


def check_training(folder: Path) -> None:
    """Three runs with BatchNorm: whole; killed in the middle of an epoch and of a loss interval; resumed."""
    options = {**BATCH_NORM, **MIDDLE, "default_hooks.progress.interval": 4}
    whole = build(folder, "whole", **options)
    whole.train()
    distiller = whole.model.module
    save(folder, "statistics", statistics(distiller))
    save(folder, "metrics", accuracy(whole))
    killed = build(folder, "killed", **options)
    step = killed.model.train_step

    def dying(*args: Any, **kwargs: Any) -> Any:
        if killed.iter == 7:
            raise InterruptedError
        return step(*args, **kwargs)

    killed.model.train_step = dying
    try:
        killed.train()
    except Exception:
        dist.barrier()
    resumed = build(folder, "killed", resume=True, **options)
    resumed.train()
    save(folder, "whole", whole.model.module.state_dict())
    save(folder, "resumed", resumed.model.module.state_dict())


def die(folder: Path) -> None:
    """The second process is killed in its fifth iteration."""
    runner = build(folder, "dead")
    step = runner.model.train_step

    def dying(*args: Any, **kwargs: Any) -> Any:
        if runner.iter == 5 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return step(*args, **kwargs)

    runner.model.train_step = dying
    runner.train()


def stop(folder: Path) -> None:
    """The second process alone gets a signal."""
    runner = build(folder, "stopped", **{"train_cfg.max_epochs": 40})
    step = runner.model.train_step

    def signalled(*args: Any, **kwargs: Any) -> Any:
        if runner.iter == 5 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args, **kwargs)

    runner.model.train_step = signalled
    runner.train()


if __name__ == "__main__":
    torch.set_num_threads(1)
    load_plugins()
    command(lambda: globals()[sys.argv[1]](Path(sys.argv[2])))
