"""How far the student's neighbourhoods are the teacher's, which needs no labels."""

from __future__ import annotations

from mmengine.registry import METRICS
from torch import Tensor

from ...distill.edge import TEACHER
from ...errors import FBTError
from .features import FeatureMetric, Seen
from .knn import nearest


@METRICS.register_module()
class Retrieval(FeatureMetric):
    """Share of images whose nearest neighbour in their split is the one that the teacher finds, in percent.

    As "student_retrieval" and so on, for all models but the teacher. Nearest is by the cosine of features. By chance it
    is 100 / (images - 1). The teacher's neighbours are kept from when it was evaluated.
    """

    key, title = "retrieval", "retrieval agreement"
    needs_teacher = True

    def __init__(self) -> None:
        super().__init__()
        self._kept: tuple[Tensor, Tensor] | None = None

    def measure(self, seen: Seen) -> dict[str, float]:
        order = seen.positions.argsort()
        if len(order) < 3:
            raise FBTError(f"Retrieval needs 3 images or more, and this split has {len(order)}")
        found = {
            name: nearest(features[order], features[order], 1, leave_out=True)[1][:, 0]
            for name, features in seen.features.items()
        }
        if TEACHER in found:
            self._kept = seen.positions[order], found.pop(TEACHER)
        if self._kept is None:
            raise FBTError("Retrieval compares with the teacher, which was not evaluated")
        index, wanted = self._kept
        if not index.equal(seen.positions[order]):
            raise FBTError("Retrieval: the teacher was evaluated on other images of this split")
        return {name: 100 * float((rows == wanted).double().mean()) for name, rows in found.items()}
