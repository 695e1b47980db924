"""Looks at the teacher before the first step: a broken one would be believed for the whole run."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ...console import say, warn
from ...distill.edge import TEACHER
from ..metrics import measures
from ..training_run import TrainingRun

NEAR_CHANCE = "THE TEACHER IS NEAR CHANCE"
"""How the warning begins."""


@HOOKS.register_module()
class TeacherCheckHook(Hook):
    """Says how good the teacher is on the validation set; near chance is a loud warning."""

    priority = "ABOVE_NORMAL"  # it speaks before the teacher cache does

    def before_train(self, runner: TrainingRun) -> None:
        teacher, metrics = runner.distiller.teacher, runner.teacher_metrics
        if teacher is None or not metrics or runner.val_loop is None:
            return
        known = [m for m in measures(runner.val_loop.evaluator.metrics) if f"{TEACHER}_{m.key}" in metrics]
        if not known:  # a teacher that others are only compared with
            return
        key, title = known[0]
        found, classes = metrics[f"{TEACHER}_{key}"], list(runner.val_dataloader.dataset.classes)
        say(f"teacher {teacher.name}: {found:.1f} % {title} on the validation set, before the first step")
        chance = 100 / len(classes)
        if found < chance + 0.1 * (100 - chance):
            of_logits = key == "top1"
            missing = "an untrained head or no checkpoint" if of_logits else "no checkpoint"
            order = [
                "- another order of the classes than this data set's:",
                f"  here {', '.join(classes[:5])}, ...",
            ]
            warn(
                f"{NEAR_CHANCE}: {found:.1f} % {title}, and guessing gives {chance:.1f} %.",
                "Whatever it gives will be noise. The usual reasons:",
                f"- {missing}: is model.teacher.checkpoint (or pretrained=True) set?",
                *(order if of_logits else ()),
                "- another input normalisation than it was trained with: it is given",
                f"  mean {teacher.mean}, std {teacher.std};",
                "  give model.teacher those that it was trained with, if it takes them.",
            )
