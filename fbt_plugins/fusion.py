"""The fusion model: runs a splice on pieces that teacher and student already computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase

from .errors import ConfigError
from .knowledge import Knowledge
from .splice import Piece, Splice
from .staged import StagedModel, StageSpec


class FusionStrategy(Protocol):
    """What FUSIONS holds: builds the junctions of a splice."""

    def build(
        self, student_specs: Sequence[StageSpec], teacher_specs: Sequence[StageSpec], splice: Splice
    ) -> nn.ModuleDict:
        """One module per junction, under its name, that maps what arrives to what the next stage takes."""
        ...


class FusionModel(nn.Module):
    """Stages of one model, a junction, stages and head of another (FBT, section "Adaptive knowledge fusion").

    It owns the junctions, and BatchNorm statistics for student stages that it runs a second time, so that the student's
    own statistics see the student's own activations only. All else it holds by reference.

    Args:
        splice: which stages come from whom.
        student, teacher: the models; the teacher is frozen by its owner.
        strategy: builds the junctions.
        student_specs, teacher_specs: the outputs of their stages, for the images that each of them is given.
    """

    def __init__(
        self,
        splice: Splice,
        student: StagedModel,
        teacher: StagedModel,
        strategy: FusionStrategy,
        student_specs: Sequence[StageSpec],
        teacher_specs: Sequence[StageSpec],
    ) -> None:
        super().__init__()
        self.splice = splice
        self._models = {"S": student, "T": teacher}  # a plain dict: torch must not see them as parts of this module
        self.junctions = strategy.build(student_specs, teacher_specs, splice)
        missing = {j.name for j in splice.junctions} ^ set(self.junctions)
        if missing:
            raise ConfigError(f"{type(strategy).__name__}: junctions {sorted(self.junctions)} for the splice {splice}")
        self.statistics = nn.ModuleDict()
        for piece in splice.pieces[1:]:
            if piece.owner == "S":
                for number in piece.stages:
                    self.statistics[str(number)] = _Statistics(student.stages[number - 1])

    @property
    def start(self) -> Piece:
        """The piece whose last activations :meth:`forward` takes."""
        return self.splice.start

    @property
    def owner(self) -> StagedModel:
        """The model whose head the fusion model ends in."""
        return self._models[self.splice.pieces[-1].owner]

    def forward(self, activations: Tensor) -> Knowledge:
        """What the fusion model knows.

        Args:
            activations: output of the last stage of the splice's first piece, as its model computed it.
        """
        x = activations
        for junction, piece in zip(self.splice.junctions, self.splice.pieces[1:], strict=True):
            x = self.junctions[junction.name](x)
            for number in piece.stages:
                stage = self._models[piece.owner].stages[number - 1]
                x = stage(x) if piece.owner == "T" else functional_call(stage, self._statistics(number), (x,))
        return self.owner.head(x)

    def _statistics(self, number: int) -> dict[str, Tensor]:
        """This model's own BatchNorm buffers for a student stage; a forward in train mode updates them in place."""
        own = self.statistics[str(number)]
        assert isinstance(own, _Statistics)
        return own.named()


class _Statistics(nn.Module):
    """A second set of BatchNorm running statistics for a stage."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self._names: dict[str, str] = {}
        for prefix, module in stage.named_modules():
            if isinstance(module, _NormBase):
                for name, buffer in module.named_buffers(recurse=False):
                    key = f"{prefix}.{name}"
                    self._names[key] = key.replace(".", "_")
                    self.register_buffer(self._names[key], buffer.detach().clone())

    def named(self) -> dict[str, Tensor]:
        """The buffers by their names inside the stage."""
        return {key: getattr(self, name) for key, name in self._names.items()}
