"""What a distiller is made of: models, fusion models, edges and losses, built from a config, and who made each."""

from __future__ import annotations

import traceback
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, FBTError, nearest, one_line
from ..models.staged import StagedModel, StageSpec
from ..registry.registries import ARCHITECTURES, FUSIONS, LOSSES, PluginRegistry
from .edge import SLOTS, TEACHER, Edge, parse_edges
from .edge_schedule import TIMES, Schedule, checked_weight, gap
from .fusion import BORROWED, TAILS, FusionModel, NoJunctionsError
from .loss_contract import (
    ModelInfo,
    check_extra,
    check_stages,
    loss_needs,
    out_of_reach,
    set_up,
    value_fault,
    wanted_stages,
)
from .splice import AUTO, parse_all

STUDENT, FUSION, TASK = "student", "fusion", "task"
Config = Mapping[str, Any]


class Assembly:
    """The parts of a :class:`Distiller`; its arguments are that one's.

    Attributes:
        student, teacher: the models; the teacher is frozen, and may be None.
        task_loss, task_weight, task_needs: loss of the student against the labels, its weight, the student's stages
            that it looks at.
        fusions, edges: by name.
        schedules: of the task loss ("task") and of each edge, by name.
        single: fusion and number of each splice, by the splice's own name ("fusion@S1-3+T4").
        types: the registered name behind each part, by the part's name.
        image_size: (height, width) of the images.

    Raises:
        ConfigError: with everything that does not fit, one line each.
    """

    def __init__(
        self,
        student: Config,
        teacher: Config | None,
        fusion: Config | None,
        edges: Sequence[str | Config],
        defaults: Mapping[str, Config | None],
        task_loss: Config | None,
        image_size: tuple[int, int] | None,
        data_info: Mapping[str, int],
    ) -> None:
        problems: list[str] = []
        self.student: StagedModel = _build(ARCHITECTURES, student, "model.student", problems)
        frozen = _build(ARCHITECTURES, teacher, "model.teacher", problems) if teacher else None
        self.schedules: dict[str, Schedule] = {}
        self.task_loss, self.task_weight = self._task_loss(task_loss, problems)
        if problems:
            raise ConfigError(problems)
        given = {STUDENT: student, TEACHER: teacher, TASK: task_loss}
        self.types = {name: config["type"] for name, config in given.items() if config}
        self.teacher: StagedModel | None = frozen.requires_grad_(False).eval() if frozen else None
        self.image_size = image_size or self.student.image_size
        self.fusions: dict[str, FusionModel] = {}
        self.single: dict[str, tuple[str, int]] = {}
        self.edges: dict[str, Edge] = {}
        self._check_models(data_info)
        data_info = {"num_classes": self.student.num_classes, **data_info}
        self.task_needs: set[int] = set()
        if self.task_loss is not None:
            _collect(problems, "", self._connect_task, data_info)
        for name, config in named_fusions(fusion).items():
            _collect(problems, f"model.fusion{'' if name == FUSION else '.' + name}", self._add_fusion, name, config)
        failed = named_fusions(fusion).keys() - self.fusions.keys()
        for options in _collect(problems, "", parse_edges, edges, defaults) or ():
            if not failed & set(str(options["name"]).split("_to_")):  # what is wrong with those is said already
                _collect(problems, "", self._add_edge, options, data_info)
        if not problems:
            problems += self._unused(defaults)
        if problems:
            raise ConfigError(problems)

    @property
    def models(self) -> dict[str, StagedModel]:
        """Student and teacher by role."""
        return {STUDENT: self.student} | ({TEACHER: self.teacher} if self.teacher is not None else {})

    def specs(self, role: str) -> list[StageSpec]:
        """Stage outputs of student or teacher for the images that it is given."""
        model = self.models[role]
        return model.specs_at(model.input_size or self.image_size)

    def _check_models(self, data_info: Mapping[str, int]) -> None:
        problems: list[str] = []
        for role in self.models:
            _collect(problems, f"model.{role}", self._measure, role)
        classes = {f"model.{role}": model.num_classes for role, model in self.models.items()} if not problems else {}
        if "num_classes" in data_info:
            classes["the data set"] = data_info["num_classes"]
        if len(set(classes.values())) > 1:
            counts = ", ".join(f"{who} has {count}" for who, count in classes.items())
            problems.append(f"model: class counts differ: {counts}; set num_classes to the same number")
        if problems:
            raise ConfigError(problems)

    def _measure(self, role: str) -> None:
        """Runs a model once without weights: whatever a third party's stages and head do wrong shows here."""
        with ARCHITECTURES.blame(self.types[role]):
            self.specs(role)

    def _add_fusion(self, name: str, config: Config) -> None:
        if self.teacher is None:
            raise ConfigError("a fusion model needs a teacher; set model.teacher, or fusion=None")
        if name in (STUDENT, TEACHER) or "_to_" in name or "@" in name:
            raise ConfigError(f"{name!r} cannot be a fusion's name")
        options, problems = dict(config), []
        tail, texts = options.pop("tail", BORROWED), options.pop("splice", AUTO)
        if tail not in TAILS:
            problems.append(f"tail {tail!r}{nearest(tail, TAILS)}")
        splices = _collect(problems, "", parse_all, texts, len(self.student.stages), len(self.teacher.stages))
        strategy = _collect(problems, "", FUSIONS.build, options)
        if problems:
            raise ConfigError(problems)
        args = (splices, self.student, self.teacher, strategy, self.specs(STUDENT), self.specs(TEACHER), tail)
        self.types[name] = options["type"]
        with FUSIONS.blame(options["type"]):
            try:
                self.fusions[name] = FusionModel(*args)
            except NoJunctionsError as error:
                raise FUSIONS.fault(options["type"], str(error)) from error
        self.single |= {f"{name}@{splice}": (name, number) for number, splice in enumerate(splices)}

    def _task_loss(self, config: Config | None, problems: list[str]) -> tuple[nn.Module | None, float]:
        if config is None:
            return None, 0.0
        options = dict(config)
        weight = _collect(problems, "", checked_weight, options.pop("weight", 1.0), "model.task_loss")
        times = {key: options.pop(key) for key in TIMES if key in options}
        schedule = _collect(problems, "model.task_loss", lambda: Schedule(**times))
        if schedule is not None:
            self.schedules[TASK] = schedule
        return _build(LOSSES, options, "model.task_loss", problems), weight

    def _connect_task(self, data_info: Mapping[str, int]) -> None:
        kind, student = self.types[TASK], self._info(STUDENT)
        with LOSSES.blame(kind):
            needs = loss_needs(self.task_loss, kind)
            self.task_needs, _ = wanted_stages(needs)
            check_stages(self.task_needs, kind, "model.task_loss", STUDENT, student)
            check_extra(needs, kind, "model.task_loss", STUDENT, student)
            set_up(self.task_loss, student, None, data_info)

    def _info(self, role: str) -> ModelInfo:
        return ModelInfo(self.specs(role), self.models[role].num_features, extra=self.models[role].extra)

    def _add_edge(self, options: dict[str, Any], data_info: Mapping[str, int]) -> None:
        infos = {role: self._info(role) for role in self.models}
        for name, fusion in self.fusions.items():
            infos[name] = ModelInfo((), *_widths(fusion), frozenset.intersection(*(m.extra for m in fusion.owners)))
        times = {key: options[key] for key in TIMES if key in options}
        edge = Edge(models=infos, data_info=data_info, **{k: v for k, v in options.items() if k not in times})
        try:
            self.schedules[edge.name] = Schedule(**times)
        except ConfigError as error:
            raise ConfigError(f"model.edges: {edge.name}: {error}") from error
        self.edges[edge.name] = edge
        self.types |= {f"{edge.name}/{slot}": kind for slot, kind in edge.types.items()}

    def _unused(self, defaults: Mapping[str, Config | None]) -> list[str]:
        used = {end for edge in self.edges.values() for end in (edge.giver, edge.receiver)}
        problems = [
            f"model.fusion: no edge mentions {n!r}; name it in model.edges, or drop it"
            for n in self.fusions
            if n not in used
        ]
        if self.teacher is not None and not self.edges:
            problems.append(
                "model.edges: there is a teacher but no edge; add 'teacher_to_student', or set teacher=None"
            )
        for slot in SLOTS:
            if defaults[slot] is not None and (
                not self.edges or (slot == "stage" and not any(slot in edge.losses for edge in self.edges.values()))
            ):
                which = "an edge between teacher and student" if slot == "stage" else "model.edges"
                problems.append(f"model.{slot}_loss: no edge uses it; add {which}, or set it to None")
        if STUDENT not in {e.receiver for e in self.edges.values()} and self.task_loss is None:
            problems.append("model: nothing trains the student; set task_loss, or an edge to the student")
        elif idle := gap(self.schedules.values()):
            problems.append(
                f"model: no loss is on from {idle[0]:g} to {idle[1]:g} of training; let task_loss or an edge begin "
                "sooner or end later"
            )
        return problems

    # ---- whose fault ---------------------------------------------------------------------------------------------

    def check_values(self, losses: Mapping[str, Tensor], on: Collection[str]) -> None:
        """Looks at a step's losses, of which those of some names are on.

        Raises:
            PluginError: if one is no scalar with a gradient, or if parameters of a loss or a junction get none.
        """
        off = {name for name in losses if name.partition("/")[0] not in on}
        for name, value in losses.items():
            if name not in off and (wrong := value_fault(value)):
                raise LOSSES.fault(self.types[name], wrong)
        total = torch.stack([value.float() for value in losses.values()]).sum()
        edges = [edge for name, edge in self.edges.items() if name in on]
        taught = {edge.receiver for edge in edges} | {edge.giver for edge in edges if not edge.detach}
        for registry, name, part in self.parts():
            if registry is ARCHITECTURES or name in off or (registry is FUSIONS and name not in taught):
                continue  # a fusion model that only gives stays as it was built, and so does what is off
            if total.requires_grad and (left := out_of_reach(total, part)):
                raise registry.fault(self.types[name], f"has a parameter {left[0]!r} that no loss's gradient reaches")

    def parts(self) -> list[tuple[PluginRegistry, str, nn.Module]]:
        """Whatever a plugin may have made: the registry it is from, its name here, and the module."""
        parts: list[tuple[PluginRegistry, str, nn.Module]] = []
        parts += [(LOSSES, TASK, self.task_loss)] if self.task_loss is not None else []
        parts += [(LOSSES, f"{n}/{slot}", x) for n, edge in self.edges.items() for slot, x in edge.losses.items()]
        parts += [(FUSIONS, name, fusion.junctions) for name, fusion in self.fusions.items()]
        roles = {"S": STUDENT, "T": TEACHER}
        copies = [item for fusion in self.fusions.values() for item in fusion.copies.items()]
        parts += [(ARCHITECTURES, roles[name[0]], copy) for name, copy in copies]
        parts += [(ARCHITECTURES, role, model.net) for role, model in self.models.items()]
        return parts

    def culprit(self, error: BaseException) -> FBTError | None:
        """An exception as the fault of the plugin in whose model, junction or loss it was raised; None if in none.

        A loss's ValueError is for the user: how it says that it lacks something.
        """
        for frame, _ in traceback.walk_tb(error.__traceback__):
            running = frame.f_locals.get("self")
            for registry, name, part in self.parts():
                if any(module is running for module in part.modules()):
                    if registry is LOSSES and isinstance(error, ValueError):
                        return ConfigError(f"{self.types[name]} ({name}): {one_line(error)}")
                    return registry.raised(self.types[name], error)
        return None


def _widths(fusion: FusionModel) -> tuple[int, list[int]]:
    """Of its first splice's features, and of the others' where they differ."""
    first, *others = dict.fromkeys(owner.num_features for owner in fusion.owners)
    return first, others


def named_fusions(fusion: Config | None) -> dict[str, Config]:
    """A config's fusions by name; one that has none is called "fusion".

    Raises:
        ConfigError: if one of them is no strategy.
    """
    if not fusion:
        return {}
    if "type" in fusion:
        return {FUSION: fusion}
    wrong = [n for n, c in fusion.items() if not isinstance(c, Mapping)]
    if wrong:
        raise ConfigError(f"model.fusion: {wrong[0]!r} without a 'type'; give one strategy, or a dict of named ones")
    return dict(fusion)


def _build(registry: Any, config: Config, where: str, problems: list[str]) -> Any:
    return _collect(problems, where, registry.build, config)


def _collect(problems: list[str], where: str, function: Any, *args: Any) -> Any:
    """Calls a function; what the user got wrong joins the other problems, each line with its place."""
    try:
        return function(*args)
    except FBTError as error:
        lines = [f"{where}: {line}" if where else line for line in str(error).splitlines()]
        problems += [line for line in lines if line not in problems]
        return None
