"""Top-k accuracies, counted by hand."""

import torch

from fbt_plugins.engine.hooks.topk import TopK


def test_topk_counts_by_hand() -> None:
    logits = torch.tensor([[9.0, 5.0, 1.0], [9.0, 5.0, 1.0], [1.0, 5.0, 9.0], [5.0, 9.0, 1.0]])
    metric = TopK(topk=(1, 2, 5))
    metric.process(None, [dict(labels=torch.tensor([0, 1, 0, 1]), student=logits, teacher=-logits)])
    # student: right, second, third, right; teacher (reversed): third, second, right, third
    assert metric.evaluate(4) == dict(student_top1=50.0, student_top2=75.0, teacher_top1=25.0, teacher_top2=50.0)


def test_padding_is_trimmed() -> None:
    metric = TopK(topk=(1,))
    logits = torch.eye(3)
    metric.process(None, [dict(labels=torch.tensor([0, 1, 0]), student=logits)])
    assert metric.evaluate(2) == dict(student_top1=100.0)
