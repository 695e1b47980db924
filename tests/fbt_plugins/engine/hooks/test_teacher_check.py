"""The run evaluates its frozen teacher once; the hook only says how good it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from runs import Build, curve

from fbt_plugins.engine.runner import DistillRunner


@pytest.mark.parametrize("hook", [{}, {"default_hooks.teacher_check": None}], ids=["checked", "unchecked"])
def test_the_teacher_is_evaluated_once_and_part_of_every_validation(
    config: Build, capsys: pytest.CaptureFixture[str], hook: dict[str, Any]
) -> None:
    no_test = dict.fromkeys(("test_dataloader", "test_cfg", "test_evaluator"))
    settings = config("run", **hook)
    settings.update(no_test)
    settings.default_hooks.summary = None
    runner = DistillRunner.from_cfg(settings)
    predict, asked = runner.distiller.predict, []

    def recording(images: Any, names: Sequence[str]) -> Any:
        asked.append(list(names))
        return predict(images, names)

    runner.distiller.predict = recording
    runner.train()
    assert asked.count(["teacher"]) == 1  # the validation set is one batch
    assert asked.count(["student", "fusion"]) == 3 and len(asked) == 4
    metrics = [record for record in curve(runner) if "val/student_top1" in record]
    assert len(metrics) == 3 and len({record["val/teacher_top1"] for record in metrics}) == 1
    said = capsys.readouterr().out
    assert ("THE TEACHER IS NEAR CHANCE" in said) == ("before the first step" in said) == (not hook)
