"""The fusion model: runs a splice on pieces that teacher and student already computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase

from .errors import ConfigError, FBTError
from .knowledge import Knowledge
from .splice import Junction, Piece, Splice
from .staged import StagedModel, StageSpec, meta_copy


class FusionStrategy(Protocol):
    """What FUSIONS holds: builds the junctions of a splice."""

    def build(
        self, student_specs: Sequence[StageSpec], teacher_specs: Sequence[StageSpec], splice: Splice
    ) -> nn.ModuleDict:
        """One module per junction, under its name, that maps what arrives to what the next stage takes."""
        ...


class FusionModel(nn.Module):
    """Stages of one model, a junction, stages and head of another (FBT, section "Adaptive knowledge fusion").

    It owns the junctions, and BatchNorm statistics for stages and head of the student that it runs a second time, so
    that the student's own statistics see the student's own activations only. All else it holds by reference.

    Args:
        splice: which stages come from whom.
        student, teacher: the models; the teacher is frozen by its owner.
        strategy: builds the junctions.
        student_specs, teacher_specs: the outputs of their stages, for the images that each of them is given.

    Raises:
        ConfigError: if a junction cannot be built, or what it gives is refused by what comes next: one line with the
            shapes on both sides.
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
        specs = student_specs, teacher_specs
        with self._in_words(splice.junctions, *specs):
            self.junctions = strategy.build(*specs, splice)
        missing = {j.name for j in splice.junctions} ^ set(self.junctions)
        if missing:
            raise ConfigError(f"{type(strategy).__name__}: junctions {sorted(self.junctions)} for the splice {splice}")
        self._try(*specs)
        self.statistics = nn.ModuleDict()
        for piece in splice.pieces[1:]:
            if piece.owner == "S":
                for number in piece.stages:
                    self.statistics[str(number)] = _Statistics(student.stages[number - 1])
        if self.owner is student:
            self.statistics["head"] = _Statistics(student.head)

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
                x = self._run(self._models[piece.owner].stages[number - 1], str(number), piece.owner, x)
        return self._run(self.owner.head, "head", self.splice.pieces[-1].owner, x)

    def _run(self, part: nn.Module, name: str, owner: str, x: Tensor) -> Any:
        """A borrowed part; the student's with BatchNorm buffers of this model, which train mode updates in place."""
        if owner == "T":
            return part(x)
        own = self.statistics[name]
        assert isinstance(own, _Statistics)
        return functional_call(part, own.named(), (x,))

    @torch.no_grad()
    def _try(self, student_specs: Sequence[StageSpec], teacher_specs: Sequence[StageSpec]) -> None:
        """Runs the splice behind its first piece once, on copies without weights."""
        junctions = meta_copy(self.junctions).eval()
        owners = {piece.owner for piece in self.splice.pieces[1:]}
        copies = {owner: meta_copy(self._models[owner]).eval() for owner in owners}
        source, _ = self.splice.junctions[0].ends(student_specs, teacher_specs)
        x = torch.empty(source.sizes(2), device="meta")
        for junction, piece in zip(self.splice.junctions, self.splice.pieces[1:], strict=True):
            with self._in_words([junction], student_specs, teacher_specs):
                x = junctions[junction.name](x)
                for number in piece.stages:
                    x = copies[piece.owner].stages[number - 1](x)
                if piece is self.splice.pieces[-1]:
                    copies[piece.owner].head(x)

    @contextmanager
    def _in_words(
        self, junctions: Sequence[Junction], student_specs: Sequence[StageSpec], teacher_specs: Sequence[StageSpec]
    ) -> Iterator[None]:
        """Says of whatever goes wrong at a junction which one it is, and which shapes meet there."""
        try:
            yield
        except (FBTError, RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
            shapes = ", ".join(self._meeting(j, *j.ends(student_specs, teacher_specs)) for j in junctions)
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(f"splice {self.splice} cannot be built: {shapes}: {reason}") from error

    def _meeting(self, junction: Junction, given: StageSpec, taken: StageSpec) -> str:
        has_it = junction.first <= len(self._models[junction.taker].stages)
        taker = f"{junction.taker}{junction.first if has_it else 'head'}"
        return f"{junction.giver}{junction.last} gives {given} and {taker} takes {taken}"


class _Statistics(nn.Module):
    """A second set of BatchNorm running statistics for a stage or a head."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self._names: dict[str, str] = {}
        for prefix, module in part.named_modules():
            if isinstance(module, _NormBase):
                for name, buffer in module.named_buffers(recurse=False):
                    key = f"{prefix}.{name}"
                    self._names[key] = key.replace(".", "_")
                    self.register_buffer(self._names[key], buffer.detach().clone())

    def named(self) -> dict[str, Tensor]:
        """The buffers by their names inside the stage."""
        return {key: getattr(self, name) for key, name in self._names.items()}
