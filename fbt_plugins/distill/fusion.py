"""The fusion model: runs a splice on pieces that teacher and student already computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import ConfigError, one_line, short
from ..models.knowledge import Knowledge
from ..models.net_part import NetPart, Unowned
from ..models.shapes import StageSpec
from ..models.staged import StagedModel, partial_copy
from ..models.weightless import Shortened, meta_copy, raised_on_meta
from ..models.writes import places_of_buffers
from ..registry.registries import ARCHITECTURES, FUSIONS
from .blame import blaming
from .splice import Junction, Piece, Splice
from .zero_gradients import with_idle

HEAD = "head"
BORROWED, COPIED = "borrowed", "copied"
TAILS = (BORROWED, COPIED)
"""Whose stages and head stand behind a fusion model's junctions: their owners', or trained copies of its own."""


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
            with torch.no_grad(), Shortened():
                found = meta_copy(junctions[junction.name])(torch.empty(source.sizes(2), device="meta"))
        except NotImplementedError:  # something that has no shape without values; it shows when it runs
            continue
        except Exception as error:  # it is anyone's code
            return f"built a {where} that raises {raised_on_meta(error)}"
        given = tuple(found.shape) if isinstance(found, Tensor) else short(found)
        if given != target.sizes(2):
            return f"built a {where} that gives {given} for a batch of 2; the next stage takes {target.sizes(2)}"
    return None


class FusionModel(nn.Module):
    """Stages of one model, a junction, stages and head of another (FBT, section "Adaptive knowledge fusion").

    It owns the junctions, and running statistics (BatchNorm's, and whatever else training changes in place of a
    gradient) for stages and head of the student that it runs a second time, so that the student's own see the student's
    own activations only. All else it holds by reference, unless its
    tail is copied: then all that stands behind a junction is its own too, and trained.

    With several splices, each training step runs one of them (the random paths of FCFD, arXiv 2304.11832). Where
    nothing else is asked, the first one stands for the model. Junctions of the same name, and copies of the same
    stage, are shared; statistics are each splice's own. What a step does not run gets a gradient of exactly zero,
    whatever the values are, so that every parameter has one in every step; an optimizer's momentum and weight decay
    go on.

    Args:
        splices: which stages come from whom, at least one.
        student, teacher: the models; the teacher is frozen by its owner.
        strategy: builds the junctions.
        student_specs, teacher_specs: the outputs of their stages, for the images that each of them is given.
        tail: "borrowed", or "copied": stages and head behind a junction start as what they are a copy of.
        kinds: the registered names of the strategy ("F") and of the two models ("S", "T"), so that a plugin whose code
            raises something is named; without them what is raised comes as it is.

    Raises:
        ConfigError: see :func:`build_junctions`; with a line for each splice.
    """

    def __init__(
        self,
        splices: Sequence[Splice],
        student: StagedModel,
        teacher: StagedModel,
        strategy: FusionStrategy,
        student_specs: Sequence[StageSpec],
        teacher_specs: Sequence[StageSpec],
        tail: str = BORROWED,
        kinds: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.splices, self.tail = tuple(splices), tail
        self._kinds = {"F": "", "S": "", "T": ""} | dict(kinds or {})
        self._models = Unowned({"S": student, "T": teacher})
        self.junctions = self._build(strategy, student_specs, teacher_specs)
        self._routes = [[self._steps(splice, piece) for piece in splice.pieces[1:]] for splice in self.splices]
        steps = [step for route in self._routes for steps in route for step in steps]
        self._twins: Unowned[dict[str, StagedModel]] = Unowned({})  # whose parts the copies are
        self.copies = nn.ModuleDict()
        if tail == COPIED:
            self._copy(steps)
        self.statistics = nn.ModuleDict({step.statistics: self._second(step) for step in steps if step.statistics})
        runs = [{id(part): part for part in self.parts(i)} for i in range(len(self.splices))]
        everything = {key: part for parts in runs for key, part in parts.items()}
        # What each splice leaves out.
        self._idle = Unowned([[part for key, part in everything.items() if key not in parts] for parts in runs])

    def _build(
        self, strategy: FusionStrategy, student_specs: Sequence[StageSpec], teacher_specs: Sequence[StageSpec]
    ) -> nn.ModuleDict:
        junctions, problems = nn.ModuleDict(), []
        for splice in self.splices:
            try:
                built = build_junctions(strategy, student_specs, teacher_specs, splice)
            except NoJunctionsError:
                raise
            except ConfigError as error:
                problems += error.problems
                continue
            junctions.update({name: module for name, module in built.items() if name not in junctions})
        if problems:
            raise ConfigError(problems)
        return junctions

    def _steps(self, splice: Splice, piece: Piece) -> list[_Step]:
        """What runs behind a junction: the stages of a piece, and the head behind the last."""
        count = len(self._models.value[piece.owner].stages)
        names = [(number, str(number)) for number in piece.stages]
        names += [(count + 1, HEAD)] if piece is splice.pieces[-1] else []
        alone = len(self.splices) == 1
        # Someone else runs it as well: the student, or another splice.
        twice = piece.owner == "S" if self.tail == BORROWED else not alone
        return [
            _Step(piece.owner, number, name, (name if alone else f"{splice}/{piece.owner}{name}") if twice else "")
            for number, name in names
        ]

    def _copy(self, steps: Sequence[_Step]) -> None:
        for owner in sorted({step.owner for step in steps}):
            own = {step.copy: step.number for step in steps if step.owner == owner}
            twin = self._twins.value[owner] = partial_copy(self._models.value[owner], own.values())
            for name, number in own.items():
                self.copies[name] = twin.part(number).requires_grad_(True)

    @property
    def owners(self) -> list[StagedModel]:
        """The model that each splice ends in the head of."""
        return [self._models.value[splice.pieces[-1].owner] for splice in self.splices]

    @property
    def title(self) -> str:
        """Its splices and whose tail they have, for people to read."""
        names = ", ".join(map(str, self.splices))
        title = f"splice {names}" if len(self.splices) == 1 else f"one splice per step: {names}"
        return title if self.tail == BORROWED else f"{title}; tail {self.tail}"

    def draw(self, seed: int) -> int:
        """The number of the splice that a training step runs.

        Args:
            seed: of the step, with all bits random; each splice has the same share of all seeds.
        """
        return seed % len(self.splices)

    def parts(self, number: int = 0) -> list[nn.Module]:
        """All that a splice runs between an image and its knowledge: stages, junctions, head.

        Args:
            number: of the splice, from 0.
        """
        splice, route = self.splices[number], self._routes[number]
        parts = [self._models.value[splice.start.owner].part(i) for i in splice.start.stages]
        for junction, steps in zip(splice.junctions, route, strict=True):
            parts += [self.junctions[junction.name], *map(self._part, steps)]
        return parts

    def alone(self, number: int) -> dict[str, str]:
        """The modules of its own that one of the splices uses, and their names in a model that has that splice alone.

        Args:
            number: of the splice, from 0; its tail is borrowed.
        """
        junctions = {f"junctions.{j.name}": f"junctions.{j.name}" for j in self.splices[number].junctions}
        steps = [step for steps in self._routes[number] for step in steps if step.statistics]
        return junctions | {f"statistics.{step.statistics}": f"statistics.{step.name}" for step in steps}

    def forward(self, activations: Tensor, number: int = 0) -> Knowledge:
        """What the fusion model knows.

        Args:
            activations: output of the last stage of the splice's first piece, as its model computed it.
            number: of the splice, from 0.

        Raises:
            PluginError: for what a plugin's junction, stage or head raises.
        """
        x: Any = with_idle(activations, self._idle.value[number])
        for junction, steps in zip(self.splices[number].junctions, self._routes[number], strict=True):
            x = self._own(steps[0], self._join(junction, x))
            for step in steps:
                x = self._run(step, x)
        return x

    def stage_outputs(self, start: Mapping[int, Tensor], number: int = 0) -> dict[str, Tensor]:
        """What passes from stage to stage, by name and in order: "S1", "S2", "S3", then a junction's "S3_T4", "T4".

        Args:
            start: outputs of the first piece's stages, as their model computed them, by number from 1.
            number: of the splice, from 0.
        """
        splice = self.splices[number]
        outputs = {f"{splice.start.owner}{i}": start[i] for i in splice.start.stages}
        x = start[splice.start.last]
        for junction, steps in zip(splice.junctions, self._routes[number], strict=True):
            outputs[junction.name] = x = self._join(junction, x)
            for step in steps:
                if step.name != HEAD:
                    outputs[step.copy] = x = self._run(step, self._own(step, x))
        return outputs

    def _second(self, step: _Step) -> _Statistics:
        return _Statistics(self._part(step), self._models.value[step.owner].writes.statistics[step.number - 1])

    def _part(self, step: _Step) -> nn.Module:
        return self.copies[step.copy] if self.tail == COPIED else self._models.value[step.owner].part(step.number)

    def _own(self, step: _Step, x: Any) -> Any:
        """A tensor for a stage that overwrites what it is given: a junction may have given one that others need."""
        return x.clone() if step.number - 1 in self._models.value[step.owner].writes.outputs else x

    def _run(self, step: _Step, x: Tensor) -> Any:
        """A stage or head, where needed with running statistics of this model, which train mode updates."""
        part = self._part(step)
        with blaming(ARCHITECTURES, self._kinds[step.owner]):
            if not step.statistics:
                return part(x)
            own = self.statistics[step.statistics]
            assert isinstance(own, _Statistics)
            return own.run(part, x)

    def _join(self, junction: Junction, x: Tensor) -> Any:
        with blaming(FUSIONS, self._kinds["F"]):
            return self.junctions[junction.name](x)

    def train(self, mode: bool = True) -> FusionModel:
        super().train(mode)
        for twin in self._twins.value.values():
            twin.train(mode)  # a cut may ask its whole network which mode it is in
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> FusionModel:
        super()._apply(fn, recurse)
        for twin in self._twins.value.values():
            twin._apply(fn, recurse)  # a cut may read tensors where its whole network keeps them
        return self


@dataclass(frozen=True)
class _Step:
    """A stage, or the head, behind a junction.

    Attributes:
        owner: "S" or "T".
        number: of the stage from 1; one more than there are is the head.
        name: "4" or "head".
        statistics: where the fusion model keeps running statistics for it, "" where it needs no second set.
    """

    owner: str
    number: int
    name: str
    statistics: str

    @property
    def copy(self) -> str:
        """What it is called, and where the fusion model keeps its copy, if it has one: "T4", "Shead"."""
        return self.owner + self.name


class _Statistics(nn.Module):
    """A second set of running statistics for a stage or a head.

    Args:
        part: the stage or the head.
        names: of its buffers that training changes.
    """

    def __init__(self, part: nn.Module, names: Set[str]) -> None:
        super().__init__()
        self._names: dict[str, str] = {}
        copies: dict[int, Tensor] = {}
        for key, (module, name) in places_of_buffers(part).items():
            if key in names:
                buffer = module.get_buffer(name)
                self._names[key] = key.replace(".", "_")
                self.register_buffer(self._names[key], copies.setdefault(id(buffer), buffer.detach().clone()))

    def named(self) -> dict[str, Tensor]:
        """The buffers by their names inside the part."""
        return {key: getattr(self, name) for key, name in self._names.items()}

    def run(self, part: nn.Module, x: Tensor) -> Any:
        """What the part gives with these statistics, which train mode updates."""
        own = self.named()
        places = part.direct_buffers() if isinstance(part, NetPart) else {}
        direct = {key: place for key, place in places.items() if key in own}
        inside = {key: buffer for key, buffer in own.items() if key not in direct}
        kept = {key: module._buffers[name] for key, (module, name) in direct.items()}
        for key, (module, name) in direct.items():
            module._buffers[name] = own[key]
        try:
            out = functional_call(part, inside, (x,), tie_weights=False)
            now = inside | {key: module.get_buffer(name) for key, (module, name) in direct.items()}
        finally:
            for key, (module, name) in direct.items():
                module._buffers[name] = kept[key]
        for key, buffer in own.items():
            if now[key] is not buffer:  # the module put another tensor there, and did not write to this one
                buffer.copy_(now[key].detach())
        return out
