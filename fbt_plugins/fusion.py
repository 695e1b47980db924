"""The fusion model: runs a splice on pieces that teacher and student already computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase

from .errors import ConfigError
from .knowledge import Knowledge
from .registry import described, one_line, short
from .splice import Junction, Piece, Splice
from .staged import StagedModel, StageSpec, meta_copy


class FusionStrategy(Protocol):
    """What FUSIONS holds: builds the junctions of a splice."""

    def build(
        self, student_specs: Sequence[StageSpec], teacher_specs: Sequence[StageSpec], splice: Splice
    ) -> nn.ModuleDict:
        """One module per junction, under its name, that maps what arrives to what the next stage takes."""
        ...


class NoJunctionsError(ConfigError):
    """A strategy built something else than the junctions of a splice."""


def ends(
    junction: Junction, student_specs: Sequence[StageSpec], teacher_specs: Sequence[StageSpec]
) -> tuple[StageSpec, StageSpec]:
    """What arrives at a junction, and what the stage behind it takes: that is what the stage before it gives."""
    specs = {"S": student_specs, "T": teacher_specs}
    return specs[junction.giver][junction.last - 1], specs[junction.taker][junction.first - 2]


def build_junctions(
    strategy: FusionStrategy, student_specs: Sequence[StageSpec], teacher_specs: Sequence[StageSpec], splice: Splice
) -> nn.ModuleDict:
    """A strategy's junctions for a splice, once they were seen to fit.

    Raises:
        ConfigError: if the strategy cannot join these two: one line with the shapes on both sides.
        NoJunctionsError: if it builds anything but junctions that fit.
    """
    try:
        junctions = strategy.build(student_specs, teacher_specs, splice)
    except (ConfigError, ValueError) as error:  # how a strategy says that it cannot
        sides = [(j, *ends(j, student_specs, teacher_specs)) for j in splice.junctions]
        shapes = ", ".join(f"{j.name} from {source} to {target}" for j, source, target in sides)
        raise ConfigError(f"splice {splice} cannot be built ({shapes}): {one_line(error)}") from error
    if problem := junction_problem(junctions, student_specs, teacher_specs, splice):
        raise NoJunctionsError(problem)
    return junctions


def junction_problem(
    junctions: object, student_specs: Sequence[StageSpec], teacher_specs: Sequence[StageSpec], splice: Splice
) -> str | None:
    """Holds what a strategy built against what a splice needs, on weightless copies.

    Args:
        junctions: what :meth:`FusionStrategy.build` returned.
        student_specs, teacher_specs, splice: what it was given.

    Returns:
        What is wrong, as the rest of a sentence whose subject is the strategy; None if nothing is.
    """
    expected = [j.name for j in splice.junctions]
    if not isinstance(junctions, nn.ModuleDict):
        return f"built {short(junctions)} for the splice {splice}, not a torch.nn.ModuleDict of {', '.join(expected)}"
    if set(junctions) != set(expected):
        names = ", ".join(junctions) or "no junctions"
        return f"built {names} for the splice {splice}, which has {', '.join(expected)}"
    for junction in splice.junctions:
        source, target = ends(junction, student_specs, teacher_specs)
        where = f"junction {junction.name} from {source} to {target}"
        try:
            with torch.no_grad():
                found = meta_copy(junctions[junction.name])(torch.empty(source.sizes(2), device="meta"))
        except NotImplementedError:  # something that has no shape without values; it shows when it runs
            continue
        except Exception as error:  # it is anyone's code
            return f"built a {where} that raises {described(error)}"
        given = tuple(found.shape) if isinstance(found, Tensor) else short(found)
        if given != target.sizes(2):
            return f"built a {where} that gives {given} for a batch of 2; the next stage takes {target.sizes(2)}"
    return None


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
        ConfigError: see :func:`build_junctions`.
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
        self.junctions = build_junctions(strategy, student_specs, teacher_specs, splice)
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
