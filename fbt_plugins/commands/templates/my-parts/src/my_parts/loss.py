"""Cross-entropy with what the teacher says; as a task loss, which has no teacher, with the labels."""

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fbt_plugins import Batch, Knowledge, full_precision


class MyPartsLoss(nn.Module):
    def __init__(self, temperature: float = 2.0) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {temperature}")
        self.temperature = temperature

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        given = batch.labels if teacher is None else teacher.logits
        if given is None:
            raise ValueError("MyPartsLoss needs a teacher or labels")
        with full_precision(student.logits, given) as (logits, target):
            if teacher is None:
                return cross_entropy(logits, target if given.is_floating_point() else given, ignore_index=-1)
            return cross_entropy(logits / self.temperature, (target / self.temperature).softmax(1))
