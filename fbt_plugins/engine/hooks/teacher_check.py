"""Looks at the teacher before the first step: a broken one would be believed for the whole run."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ...console import say, warn
from ...distill.edge import TEACHER
from ..training_run import TrainingRun
from .topk import evaluate


@HOOKS.register_module()
class TeacherCheckHook(Hook):
    """Evaluates the teacher on the validation set, once; near chance is a loud warning.

    A frozen teacher's metrics never change, so validation leaves it out and reports these.
    """

    priority = "ABOVE_NORMAL"

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}

    def before_train(self, runner: TrainingRun) -> None:
        distiller = runner.distiller
        if distiller.teacher is None or runner.val_loop is None:
            return
        loop = runner.val_loop
        metrics = self.metrics = evaluate(runner.model, loop.dataloader, loop.evaluator, [TEACHER])
        distiller.validated = [n for n in distiller.names if n != TEACHER]
        top1, classes = metrics[f"{TEACHER}_top1"], distiller.teacher.num_classes
        say(f"teacher {distiller.teacher.name}: {top1:.1f} % top-1 on the validation set, before the first step")
        chance = 100 / classes
        if top1 < chance + 0.1 * (100 - chance):
            warn(
                f"THE TEACHER IS NEAR CHANCE: {top1:.1f} % top-1, and guessing gives {chance:.1f} %.",
                "Whatever it gives will be noise. The usual reasons:",
                "- an untrained head or no checkpoint: is model.teacher.checkpoint (or pretrained=True) set?",
                "- another order of the classes than this data set's:",
                f"  here {', '.join(list(loop.dataloader.dataset.classes)[:5])}, ...",
                "- another input normalisation than it was trained with: it is given",
                f"  mean {distiller.teacher.mean}, std {distiller.teacher.std};",
                "  give model.teacher those that it was trained with, if it takes them.",
            )

    def after_val_epoch(self, runner: TrainingRun, metrics: dict[str, float] | None = None) -> None:
        if metrics is not None:
            metrics |= self.metrics
