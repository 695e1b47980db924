"""The distiller: teacher, student, fusions, edges and losses; the model that an mmengine Runner trains."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence, Set
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor, nn

from .data.randomness import derive_seed
from .edge import (
    SLOTS,
    TEACHER,
    Edge,
    ModelInfo,
    StepLosses,
    check_stages,
    loss_needs,
    out_of_reach,
    parse_edges,
    set_up,
    value_fault,
    wanted_stages,
    weighted,
)
from .errors import ConfigError, FBTError, nearest
from .fusion import BORROWED, TAILS, FusionModel, NoJunctionsError
from .knowledge import Batch, Knowledge
from .registry import ARCHITECTURES, FUSIONS, LOSSES, PluginRegistry, one_line
from .schedule import TIMES, Schedule, gap
from .splice import AUTO, parse_all
from .staged import StagedModel, StageSpec

STUDENT, FUSION, TASK = "student", "fusion", "task"
Config = Mapping[str, Any]


@MODELS.register_module()
class Distiller(BaseModel):
    """Transfers knowledge along edges between a frozen teacher, fusion models and a student.

    Without a teacher it is plain training of the student, which is how teachers are made.

    Args:
        student: config of the model that is trained.
        teacher: config of the frozen model, or None.
        fusion: config of one fusion strategy with its ``splice`` (or a list, of which each step draws one) and its
            ``tail`` (see :class:`FusionModel`), a dict of named ones, or None.
        edges: names ("teacher_to_student"), or dicts with losses, weights and times of their own (:class:`Schedule`).
        feature_loss, logit_loss, stage_loss: the losses of edges that have none of their own.
        task_loss: loss of the student against the labels; may carry a ``weight``, and times as edges do.
        image_size: (height, width) of the images that the pipeline yields; None is the student's own size.
        data_info: ``{"num_classes": ..., "num_samples": ...}`` of the training data, where known.
        data_preprocessor: mmengine's.

    Attributes:
        validated: the models that validation looks at; None is all of them.
        schedules: of the task loss ("task") and of each edge, by name.

    Raises:
        ConfigError: with everything that does not fit, one line each.
    """

    fusions: dict[str, FusionModel]  # an nn.ModuleDict
    edges: dict[str, Edge]  # an nn.ModuleDict
    schedules: dict[str, Schedule]  # an nn.ModuleDict

    def __init__(
        self,
        student: Config,
        teacher: Config | None = None,
        fusion: Config | None = None,
        edges: Sequence[str | Config] = (),
        feature_loss: Config | None = None,
        logit_loss: Config | None = None,
        stage_loss: Config | None = None,
        task_loss: Config | None = None,
        image_size: tuple[int, int] | None = None,
        data_info: Mapping[str, int] | None = None,
        data_preprocessor: Config | nn.Module | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor)
        problems: list[str] = []
        self.student = _build(ARCHITECTURES, student, "model.student", problems)
        frozen = _build(ARCHITECTURES, teacher, "model.teacher", problems) if teacher else None
        self.schedules = nn.ModuleDict()  # type: ignore[assignment]
        self.task_loss, self.task_weight = self._task_loss(task_loss, problems)
        if problems:
            raise ConfigError(problems)
        given = {STUDENT: student, TEACHER: teacher, TASK: task_loss}
        self._types = {name: config["type"] for name, config in given.items() if config}
        # In a tuple, so that no optimizer, checkpoint, EMA or DDP ever sees the teacher's weights.
        self._teacher: tuple[StagedModel, ...] = (frozen.requires_grad_(False).eval(),) if frozen else ()
        self.image_size = image_size or self.student.image_size
        self.validated: list[str] | None = None
        self.fusions = nn.ModuleDict()  # type: ignore[assignment]
        self._single: dict[str, tuple[str, int]] = {}
        self.edges = nn.ModuleDict()  # type: ignore[assignment]
        self._check_models(data_info or {})
        data_info = {"num_classes": self.student.num_classes, **(data_info or {})}
        self._task_needs: set[int] = set()
        if self.task_loss is not None:
            _collect(problems, "", self._connect_task, data_info)

        for name, config in _named_fusions(fusion).items():
            _collect(problems, f"model.fusion{'' if name == FUSION else '.' + name}", self._add_fusion, name, config)
        failed = _named_fusions(fusion).keys() - self.fusions.keys()
        defaults = {"feature": feature_loss, "logit": logit_loss, "stage": stage_loss}
        for options in _collect(problems, "", parse_edges, edges, defaults) or ():
            if not failed & set(str(options["name"]).split("_to_")):  # what is wrong with those is said already
                _collect(problems, "", self._add_edge, options, data_info)
        if not problems:
            problems += self._unused(defaults)
        if problems:
            raise ConfigError(problems)
        self._needed: dict[tuple[frozenset[str], tuple[int, ...]], dict[str, set[int]]] = {}
        self._values_seen: set[tuple[tuple[int, ...], tuple[str, ...]]] = set()
        for role, model in self.models.items():
            channels = (1, model.in_chans, 1, 1)
            for what, values in (("mean", model.mean), ("std", model.std)):
                self.register_buffer(
                    f"{role}_{what}", torch.tensor(values).reshape(1, -1, 1, 1).expand(channels), False
                )

    @property
    def teacher(self) -> StagedModel | None:
        """The frozen teacher, if there is one; it is moved with this module but is not part of its tree."""
        return self._teacher[0] if self._teacher else None

    @property
    def models(self) -> dict[str, StagedModel]:
        """Student and teacher by role."""
        return {STUDENT: self.student, TEACHER: self._teacher[0]} if self._teacher else {STUDENT: self.student}

    @property
    def names(self) -> list[str]:
        """All models: student, teacher, fusions; of a fusion with several splices its name means the first.

        Each splice can be evaluated under a name of its own besides, "fusion@S1-3+T4".
        """
        return [*self.models, *self.fusions]

    def _apply(self, fn: Any, recurse: bool = True) -> Distiller:
        for teacher in self._teacher:
            teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def init_weights(self) -> None:
        """Nothing: models come initialised. mmengine's own would re-initialise pretrained timm models."""

    # ---- building -------------------------------------------------------------------------------------------------

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
        with ARCHITECTURES.blame(self._types[role]):
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
        self._types[name] = options["type"]
        with FUSIONS.blame(options["type"]):
            try:
                self.fusions[name] = FusionModel(*args)
            except NoJunctionsError as error:
                raise FUSIONS.fault(options["type"], str(error)) from error
        self._single |= {f"{name}@{splice}": (name, number) for number, splice in enumerate(splices)}

    def _task_loss(self, config: Config | None, problems: list[str]) -> tuple[nn.Module | None, float]:
        if config is None:
            return None, 0.0
        options = dict(config)
        weight, times = options.pop("weight", 1.0), {key: options.pop(key) for key in TIMES if key in options}
        schedule = _collect(problems, "model.task_loss", lambda: Schedule(**times))
        if schedule is not None:
            self.schedules[TASK] = schedule
        return _build(LOSSES, options, "model.task_loss", problems), float(weight)

    def _connect_task(self, data_info: Mapping[str, int]) -> None:
        kind, student = self._types[TASK], self._info(STUDENT)
        with LOSSES.blame(kind):
            needs = loss_needs(self.task_loss, kind)
            self._task_needs, _ = wanted_stages(needs)
            check_stages(self._task_needs, kind, "model.task_loss", STUDENT, student)
            set_up(self.task_loss, student, None, data_info)

    def _info(self, role: str) -> ModelInfo:
        return ModelInfo(self.specs(role), self.models[role].num_features)

    def _add_edge(self, options: dict[str, Any], data_info: Mapping[str, int]) -> None:
        infos = {role: self._info(role) for role in self.models}
        infos |= {n: ModelInfo((), f.owners[0].num_features) for n, f in self.fusions.items()}
        times = {key: options[key] for key in TIMES if key in options}
        edge = Edge(models=infos, data_info=data_info, **{k: v for k, v in options.items() if k not in times})
        for name in {edge.giver, edge.receiver} & self.fusions.keys():
            widths = sorted({owner.num_features for owner in self.fusions[name].owners})
            if len(widths) > 1 and "feature" in edge.losses:
                raise ConfigError(
                    f"model.edges: {edge.name}: features of {name!r} are {widths[0]} or {widths[1]} wide, for its "
                    "splices end in both models; set feature_loss=None, or make two fusions of them"
                )
        try:
            self.schedules[edge.name] = Schedule(**times)
        except ConfigError as error:
            raise ConfigError(f"model.edges: {edge.name}: {error}") from error
        self.edges[edge.name] = edge
        self._types |= {f"{edge.name}/{slot}": kind for slot, kind in edge.types.items()}

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

    # ---- running --------------------------------------------------------------------------------------------------

    def begin_step(self, seed: int, progress: float | None = None) -> None:
        """Sets what a training step runs: one splice of each fusion model that has several, and the losses that are on.

        Args:
            seed: of the step, the same in all processes.
            progress: fraction of training that was done before it; None has all losses on, with their whole weights.
        """
        for number, fusion in enumerate(self.fusions.values()):
            fusion.draw(derive_seed(seed, number))
        for schedule in self.schedules.values():
            schedule.begin_step(progress)
        self.needs(self.in_losses)  # remembered here: a graph that was compiled does not like to see it change

    @property
    def on(self) -> tuple[str, ...]:
        """Whose losses this step computes: "task", names of edges."""
        return tuple(name for name, schedule in self.schedules.items() if schedule.on)

    @property
    def in_losses(self) -> frozenset[str]:
        """The models whose knowledge this step's losses take."""
        ends = {end for name in self.on if name != TASK for end in self.edges[name].ends}
        return frozenset(ends | {STUDENT} if TASK in self.on else ends)

    def train(self, mode: bool = True) -> Distiller:
        super().train(mode)
        for teacher in self._teacher:
            teacher.eval()
        return self

    def forward(
        self,
        inputs: Tensor,
        labels: Tensor | None = None,
        index: Tensor | None = None,
        mode: str = "tensor",
        view: Tensor | None = None,
        teacher_features: Tensor | None = None,
        teacher_logits: Tensor | None = None,
    ) -> dict[str, Tensor] | dict[str, Knowledge] | Tensor:
        """Runs the models that are needed.

        Args:
            inputs: images (N, C, H, W) in [0, 1].
            labels: (N,) or (N, classes).
            index: (N,) positions in the data set.
            mode: "loss" for the named, weighted losses; "predict" for the validated models' logits by name;
                "tensor" for the student's logits.
            view: (N,) which view of its image each input is, where the data set has fixed ones; only passed through.
            teacher_features, teacher_logits: (N, D) and (N, C), what the teacher knows about these very inputs; losses
                then take them, in float32, and the teacher is not run on the images.
        """
        if mode == "loss":
            given = None
            if teacher_features is not None and teacher_logits is not None:
                given = Knowledge(teacher_features.float(), teacher_logits.float())
            return self.losses(inputs, Batch(labels, index), given)
        if mode == "predict":
            return self.predict(inputs, self.validated or self.names)
        if mode == "tensor":
            return self.student(self.prepare(inputs, STUDENT))
        raise ValueError(f"mode is 'loss', 'predict' or 'tensor', not {mode!r}")

    def prepare(self, images: Tensor, role: str) -> Tensor:
        """Images in [0, 1] as a model wants them: resized where it says so, normalised with its own mean and std."""
        model = self.models[role]
        if model.input_size and images.shape[2:] != model.input_size:
            images = F.interpolate(images, model.input_size, mode="bicubic", antialias=True).clamp(0, 1)
        return (images - getattr(self, f"{role}_mean")) / getattr(self, f"{role}_std")

    def losses(self, images: Tensor, batch: Batch, teacher: Knowledge | None = None) -> dict[str, Tensor]:
        """All losses of one batch, named "task" or "edge/slot", each with its weights; ``teacher`` as in `know`.

        Those that are off are 0, and nothing was computed for them.
        """
        known = self.know(images, self.in_losses, teacher)
        on, zero = self.on, torch.zeros((), device=images.device)
        values: dict[str, Tensor] = {}
        if self.task_loss is not None:
            task = weighted(self.task_loss(known[STUDENT], None, batch), self.task_weight) if TASK in on else zero
            values[TASK] = self.schedules[TASK](task)
        for name, edge in self.edges.items():
            given = edge(known, batch) if name in on else dict.fromkeys(edge.losses, zero)
            for slot, value in given.items():
                values[f"{name}/{slot}"] = self.schedules[name](value)
        return values

    def know(self, images: Tensor, wanted: Set[str], teacher: Knowledge | None = None) -> dict[str, Knowledge]:
        """Knowledge of the wanted models; each stage runs at most once in its own model.

        Args:
            images: (N, C, H, W) in [0, 1].
            wanted: names of models, or of single splices.
            teacher: what the teacher knows about these images, where that is known already: it is not run on them.
                Features and logits are all there is then, so no splice may start in the teacher.
        """
        known: dict[str, Knowledge] = {TEACHER: teacher} if teacher else {}
        starts: dict[str, Mapping[int, Tensor]] = {}
        needs = self.needs(frozenset(wanted))
        for role, model in self.models.items():
            if role in known or role not in needs:
                continue
            with torch.no_grad() if role == TEACHER else nullcontext():
                inputs = self.prepare(images, role)
                if role in wanted:
                    known[role] = model.knowledge(inputs, needs[role])
                    starts[role] = known[role].stages
                else:
                    starts[role] = model.stage_outputs(inputs, needs[role])
        for name, fusion, number in self._spliced(wanted):
            role, last = start_of(fusion, number)
            known[name] = fusion(starts[role][last], number)
        return known

    def needs(self, wanted: frozenset[str]) -> dict[str, set[int]]:
        """The models to run, and which of their stages' outputs are needed, for the knowledge of the wanted models."""
        key = wanted, tuple(fusion.current for fusion in self.fusions.values())
        if key not in self._needed:
            needs: dict[str, set[int]] = {role: set() for role in self.models if role in wanted}
            for role in needs:
                needs[role] |= self._task_needs if role == STUDENT else set()
                for edge in self.edges.values():
                    needs[role] |= edge.needs.get(role, set())
            for _, fusion, number in self._spliced(wanted):
                role, last = start_of(fusion, number)
                needs.setdefault(role, set()).add(last)
            self._needed[key] = needs
        return self._needed[key]

    def _spliced(self, wanted: Set[str]) -> list[tuple[str, FusionModel, int]]:
        """The wanted fusion models, by name and number of the splice, in one order whatever the set's is."""
        current = [(name, fusion, fusion.current) for name, fusion in self.fusions.items() if name in wanted]
        single = [(name, self.fusions[n], number) for name, (n, number) in self._single.items() if name in wanted]
        return current + single

    @torch.no_grad()
    def predict(self, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Logits (N, classes) of the named models, or single splices ("fusion@S1-3+T4").

        Raises:
            KeyError: for a name that is no model here.
        """
        for name in names:
            if name not in (known := [*self.names, *self._single]):
                raise KeyError(f"no model {name!r}{nearest(name, known)}")
        knowledge = self.know(images, set(names))
        return {name: knowledge[name].logits for name in names}

    def parse_losses(self, losses: dict[str, Tensor]) -> tuple[Tensor, StepLosses]:  # type: ignore[override]
        """The sum to descend, and all named losses as they are on the device, unread.

        Raises:
            PluginError: in the first step of each splice and of each set of losses that are on, if a loss returned
                anything but a scalar with a gradient, or if parameters of a loss or a junction get none.
        """
        kind = tuple(fusion.current for fusion in self.fusions.values()), self.on
        if kind not in self._values_seen:
            self._check_values(losses)
            self._values_seen.add(kind)
        step = StepLosses(losses)
        return step.total, step

    def _check_values(self, losses: Mapping[str, Tensor]) -> None:
        on = self.on
        off = {name for name in losses if name.partition("/")[0] not in on}
        for name, value in losses.items():
            if name not in off and (wrong := value_fault(value)):
                raise LOSSES.fault(self._types[name], wrong)
        total = torch.stack([value.float() for value in losses.values()]).sum()
        edges = [edge for name, edge in self.edges.items() if name in on]
        taught = {edge.receiver for edge in edges} | {edge.giver for edge in edges if not edge.detach}
        for registry, name, part in self._parts():
            if registry is ARCHITECTURES or name in off or (registry is FUSIONS and name not in taught):
                continue  # a fusion model that only gives stays as it was built, and so does what is off
            if total.requires_grad and (left := out_of_reach(total, part)):
                raise registry.fault(self._types[name], f"has a parameter {left[0]!r} that no loss's gradient reaches")

    def _parts(self) -> list[tuple[PluginRegistry, str, nn.Module]]:
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
            for registry, name, part in self._parts():
                if any(module is running for module in part.modules()):
                    if registry is LOSSES and isinstance(error, ValueError):
                        return ConfigError(f"{self._types[name]} ({name}): {one_line(error)}")
                    return registry.raised(self._types[name], error)
        return None

    def val_step(self, data: Any) -> list[dict[str, Tensor]]:
        """One step of an mmengine validation loop: the validated models' logits, and the labels."""
        data = self.data_preprocessor(data, False)
        predictions: dict[str, Tensor] = self(**data, mode="predict")  # type: ignore[assignment]
        return [{"labels": data["labels"], **predictions}]

    test_step = val_step


def start_of(fusion: FusionModel, number: int) -> tuple[str, int]:
    """Where a fusion model's splice starts: the model whose activations it takes, and the stage that gives them."""
    start = fusion.splices[number].start
    return STUDENT if start.owner == "S" else TEACHER, start.last


def _named_fusions(fusion: Config | None) -> dict[str, Config]:
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
