"""From a config to the parts of a distiller: models, fusion models and edges, and the plugin that each is from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..errors import ConfigError, FBTError, nearest
from ..models.census import of_model
from ..models.shapes import StageSpec
from ..models.staged import StagedModel
from ..registry.registries import ARCHITECTURES, FUSIONS, LOSSES
from .blame import blaming
from .edge import SLOTS, STUDENT, TASK, TEACHER, Edge, parse_edges, split_name
from .edge_schedule import TIMES, Schedule, checked_weight, gap
from .fusion import BORROWED, TAILS, FusionModel, NoJunctionsError
from .given import check_data_info, check_dict
from .loss_contract import ModelInfo
from .splice import AUTO, more_local, parse_all

FUSION = "fusion"
Config = Mapping[str, Any]


def specs_given(model: StagedModel, image_size: tuple[int, int]) -> list[StageSpec]:
    """A model's stage outputs for the pipeline's images, which are resized to its ``input_size`` if it has one."""
    return model.specs_at(model.input_size or image_size)


def family_given(model: StagedModel, image_size: tuple[int, int]) -> str:
    """The family of a model, by its stages for the pipeline's images; ``model.family`` is of its own image size."""
    return of_model(spec.family for spec in specs_given(model, image_size))


@dataclass
class Parts:
    """What a :class:`Distiller` is made of, and owns from then on.

    Attributes:
        models: student, and teacher where there is one, by role; the teacher is frozen.
        types: the registered name of each model ("student"; "" of one that was built already), fusion model and loss
            ("task", "edge/slot").
        image_size: (height, width) of the images that the models are given.
        fusions: by name.
        edges: by name; the task loss is one of them.
    """

    models: dict[str, StagedModel]
    types: dict[str, str]
    image_size: tuple[int, int]
    fusions: dict[str, FusionModel] = field(default_factory=dict)
    edges: dict[str, Edge] = field(default_factory=dict)

    def specs(self, role: str) -> list[StageSpec]:
        """Stage outputs of student or teacher for the images that it is given."""
        return specs_given(self.models[role], self.image_size)


def build(
    student: Config | nn.Module,
    teacher: Config | nn.Module | None,
    fusion: Config | None,
    edges: Sequence[str | Config],
    defaults: Mapping[str, Config | None],
    task_loss: Config | None,
    image_size: tuple[int, int] | None,
    data_info: Mapping[str, int],
) -> Parts:
    """Builds the parts of a distiller; the arguments are those of :class:`Distiller`.

    Args:
        student, teacher, fusion, edges, task_loss, image_size, data_info: see there.
        defaults: the losses of edges that have none of their own, by slot.

    Raises:
        ConfigError: with everything that does not fit, one line each.
    """
    problems: list[str] = []
    _collect(problems, "", check_data_info, data_info)
    models = {STUDENT: _collect(problems, f"model.{STUDENT}", _model, student, image_size)}
    if teacher:
        models[TEACHER] = _collect(problems, f"model.{TEACHER}", _model, teacher, image_size)
    task = _collect(problems, "", _task_options, task_loss) if task_loss is not None else None
    if problems:
        if task:  # what is wrong with it is said as well
            loss = {key: value for key, value in task["losses"][TASK].items() if key != "weight"}
            _collect(problems, f"model.{TASK}_loss", LOSSES.build, loss)
        raise ConfigError(problems)
    if TEACHER in models:
        if {*map(id, models[STUDENT].parameters())} & {*map(id, models[TEACHER].parameters())}:
            raise ConfigError(
                "model: teacher and student share weights, and the teacher is frozen: give a deepcopy of one"
            )
        models[TEACHER].requires_grad_(False).eval()
    given = {STUDENT: student, TEACHER: teacher}
    types = {role: given[role]["type"] if isinstance(given[role], Mapping) else "" for role in models}  # type: ignore[index, call-overload]
    parts = Parts(models, types, image_size or models[STUDENT].image_size)
    builder = _Builder(parts, data_info)
    if task:
        builder.collect("", builder.add_edge, task)
    for name, config in named_fusions(fusion).items():
        builder.collect(f"model.fusion{'' if name == FUSION else '.' + name}", builder.add_fusion, name, config)
    failed = named_fusions(fusion).keys() - parts.fusions.keys()
    for options in builder.collect("", parse_edges, edges, defaults) or ():
        if not failed & set(str(options["name"]).split("_to_")):  # what is wrong with those is said already
            builder.collect("", builder.add_edge, options)
    builder.collect("", builder.check_classes)
    if not builder.problems:
        builder.problems += _unused(parts, defaults)
    if builder.problems:
        raise ConfigError(builder.problems)
    return parts


def _model(given: Config | nn.Module, image_size: tuple[int, int] | None) -> StagedModel:
    """From a config, or of a network that is built already, for images of that size where it has none of its own."""
    if isinstance(given, StagedModel):
        return given
    if isinstance(given, nn.Module):
        return StagedModel.of(given, image_size=image_size)
    model: StagedModel = ARCHITECTURES.build(given)
    return model


class _Builder:
    """Adds fusion models and edges to models, and collects what is wrong on the way.

    Args:
        parts: with models alone.
        data_info: of the training data.

    Attributes:
        problems: one line each.

    Raises:
        ConfigError: if the models cannot take the images.
    """

    def __init__(self, parts: Parts, data_info: Mapping[str, int]) -> None:
        self.parts = parts
        self.problems: list[str] = []
        for role in parts.models:
            self.collect(f"model.{role}", self._measure, role)
        if self.problems:
            raise ConfigError(self.problems)
        self.given = data_info
        self.data_info = {"num_classes": parts.models[STUDENT].num_classes, **data_info}

    def check_classes(self) -> None:
        """Looks whether models whose logits are compared have the same classes, and those of the data, if it has any.

        Raises:
            ConfigError: if not.
        """
        parts = self.parts
        ends = {end for edge in parts.edges.values() for end in edge.compares}
        compared = {
            id(model)
            for end in ends
            for model in ([parts.models[end]] if end in parts.models else parts.fusions[end].owners)
        }
        classes = {f"model.{role}": model.num_classes for role, model in parts.models.items() if id(model) in compared}
        if classes and "num_classes" in self.given:
            classes["the data set"] = self.given["num_classes"]
        if len(set(classes.values())) > 1:
            counts = ", ".join(f"{who} has {count}" for who, count in classes.items())
            raise ConfigError(
                f"model: class counts differ: {counts}; set num_classes to the same number, or compare no logits"
            )

    def collect(self, where: str, function: Any, *args: Any) -> Any:
        """Calls a function; what the user got wrong joins the problems."""
        return _collect(self.problems, where, function, *args)

    def _measure(self, role: str) -> None:
        """Runs a model once without weights: whatever a third party's stages and head do wrong shows here."""
        with blaming(ARCHITECTURES, self.parts.types[role]):
            self.parts.specs(role)

    def add_fusion(self, name: str, config: Config) -> None:
        parts = self.parts
        if TEACHER not in parts.models:
            raise ConfigError("a fusion model needs a teacher; set model.teacher, or fusion=None")
        if name in (STUDENT, TEACHER) or "_to_" in name or "@" in name:
            raise ConfigError(f"{name!r} cannot be a fusion's name")
        options, problems = dict(config), []
        tail, texts = options.pop("tail", BORROWED), options.pop("splice", AUTO)
        if tail not in TAILS:
            problems.append(f"tail {tail!r}{nearest(tail, TAILS)}")
        student, teacher = parts.models[STUDENT], parts.models[TEACHER]
        first = more_local(*(family_given(model, parts.image_size) for model in (student, teacher)))
        splices = _collect(problems, "", parse_all, texts, len(student.stages), len(teacher.stages), first)
        strategy = _collect(problems, "", lambda: FUSIONS.build(options, also=("splice", "tail")))
        if problems:
            raise ConfigError(problems)
        kind = parts.types[name] = options["type"]
        kinds = {"F": kind, "S": parts.types[STUDENT], "T": parts.types[TEACHER]}
        args = (splices, student, teacher, strategy, parts.specs(STUDENT), parts.specs(TEACHER), tail, kinds)
        with FUSIONS.blame(kind):
            try:
                parts.fusions[name] = FusionModel(*args)
            except NoJunctionsError as error:
                raise FUSIONS.fault(kind, str(error)) from error

    def add_edge(self, options: Mapping[str, Any]) -> None:
        name, infos = options["name"], self._infos()
        times = {key: options[key] for key in TIMES if key in options}
        others = {key: value for key, value in options.items() if key not in times}
        ends = (None, STUDENT) if name == TASK else split_name(name, infos)
        edge = Edge(ends=ends, models=infos, data_info=self.data_info, **others)
        try:
            edge.schedule = Schedule(**times)
        except ConfigError as error:
            raise ConfigError(f"{edge.where}: {error}") from error
        self.parts.edges[name] = edge
        self.parts.types |= edge.types

    def _infos(self) -> dict[str, ModelInfo]:
        parts = self.parts
        infos = {
            r: ModelInfo(parts.specs(r), m.num_features, extra=m.extra, encoder=not m.num_classes)
            for r, m in parts.models.items()
        }
        for name, fusion in parts.fusions.items():
            first, *others = dict.fromkeys(owner.num_features for owner in fusion.owners)
            extra = frozenset.intersection(*(owner.extra for owner in fusion.owners))
            encoder = not all(owner.num_classes for owner in fusion.owners)
            infos[name] = ModelInfo((), first, others, extra, encoder)
        return infos


def _task_options(config: Config) -> dict[str, Any]:
    """The task loss as an edge: its arguments, as :func:`parse_edges` gives those of the others."""
    place = f"model.{TASK}_loss"
    check_dict(config, LOSSES, place)
    problems: list[str] = []
    _collect(problems, "", checked_weight, config.get("weight", 1.0), place)
    times = {key: config[key] for key in TIMES if key in config}
    _collect(problems, place, lambda: Schedule(**times))
    if problems:
        raise ConfigError(problems)
    loss = {key: value for key, value in config.items() if key not in times}
    return {"name": TASK, "losses": {TASK: loss}, "places": {TASK: place}, **times}


def _unused(parts: Parts, defaults: Mapping[str, Config | None]) -> list[str]:
    """What a config has that nothing uses, and parts of training in which nothing is trained."""
    given = [edge for edge in parts.edges.values() if edge.giver]
    used = {end for edge in given for end in edge.ends}
    problems = [
        f"model.fusion: no edge mentions {n!r}; name it in model.edges, or drop it"
        for n in parts.fusions
        if n not in used
    ]
    if TEACHER in parts.models and not given:
        problems.append("model.edges: there is a teacher but no edge; add 'teacher_to_student', or set teacher=None")
    for slot in SLOTS:
        if defaults[slot] is not None and (
            not given or (slot == "stage" and not any(slot in edge.losses for edge in given))
        ):
            which = "an edge between teacher and student" if slot == "stage" else "model.edges"
            problems.append(f"model.{slot}_loss: no edge uses it; add {which}, or set it to None")
    if STUDENT not in {edge.receiver for edge in parts.edges.values()}:
        problems.append("model: nothing trains the student; set task_loss, or an edge to the student")
    elif idle := gap(edge.schedule for edge in parts.edges.values()):
        problems.append(
            f"model: no loss is on from {idle[0]:g} to {idle[1]:g} of training; let task_loss or an edge begin "
            "sooner or end later"
        )
    return problems


def named_fusions(fusion: Config | None) -> dict[str, Config]:
    """A config's fusions by name; one that has none is called "fusion".

    Raises:
        ConfigError: if it, or one of them, is no strategy.
    """
    if not fusion:
        return {}
    check_dict(fusion, FUSIONS, f"model.{FUSION}")
    if "type" in fusion:
        return {FUSION: fusion}
    wrong = [n for n, c in fusion.items() if not isinstance(c, Mapping)]
    if wrong:
        raise ConfigError(f"model.fusion: {wrong[0]!r} without a 'type'; give one strategy, or a dict of named ones")
    return dict(fusion)


def _collect(problems: list[str], where: str, function: Any, *args: Any) -> Any:
    """Calls a function; what the user got wrong joins the other problems, each line with its place."""
    try:
        return function(*args)
    except FBTError as error:
        lines = [f"{where}: {line}" if where else line for line in str(error).splitlines()]
        problems += [line for line in lines if line not in problems]
        return None
