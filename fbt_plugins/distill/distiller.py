"""The distiller: teacher, student, fusions, edges and losses; the model that an mmengine Runner trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..errors import FBTError, nearest
from ..models.knowledge import Batch, Knowledge
from ..models.staged import StagedModel, StageSpec
from ..randomness import derive_seed
from .build import STUDENT, TASK, TEACHER, Assembly, Config
from .edge import Edge
from .edge_schedule import Schedule
from .fusion import FusionModel
from .loss_contract import StepLosses, weighted


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
        defaults = {"feature": feature_loss, "logit": logit_loss, "stage": stage_loss}
        made = Assembly(student, teacher, fusion, edges, defaults, task_loss, image_size, data_info or {})
        self._made = made  # no module: no optimizer, checkpoint, EMA or DDP ever sees the teacher's weights
        self.image_size = made.image_size
        self.student = made.student
        self.schedules = nn.ModuleDict(made.schedules)  # type: ignore[assignment]
        self.task_loss, self.task_weight = made.task_loss, made.task_weight
        self.fusions = nn.ModuleDict(made.fusions)  # type: ignore[assignment]
        self.edges = nn.ModuleDict(made.edges)  # type: ignore[assignment]
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
        return self._made.teacher

    @property
    def models(self) -> dict[str, StagedModel]:
        """Student and teacher by role."""
        return self._made.models

    @property
    def names(self) -> list[str]:
        """All models: student, teacher, fusions; of a fusion with several splices its name means the first.

        Each splice can be evaluated under a name of its own besides, "fusion@S1-3+T4".
        """
        return [*self.models, *self.fusions]

    def _apply(self, fn: Any, recurse: bool = True) -> Distiller:
        if self.teacher is not None:
            self.teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def init_weights(self) -> None:
        """Nothing: models come initialised. mmengine's own would re-initialise pretrained timm models."""

    def specs(self, role: str) -> list[StageSpec]:
        """Stage outputs of student or teacher for the images that it is given."""
        return self._made.specs(role)

    def state_of(self, fusion: str, number: int) -> dict[str, Tensor]:
        """The state of a distiller whose fusion model has one of its splices alone.

        Args:
            fusion: name of the fusion model.
            number: of the splice, from 0.
        """
        model = self.fusions[fusion]
        parts = {f"fusions.{fusion}.": model.state_of(number)}
        for name, edge in self.edges.items():
            if fusion in (edge.giver, edge.receiver):
                parts[f"edges.{name}."] = edge.state_of(fusion, model.owners[number].num_features)
        rest = {key: value for key, value in self.state_dict().items() if not key.startswith(tuple(parts))}
        return rest | {prefix + key: value for prefix, part in parts.items() for key, value in part.items()}

    def culprit(self, error: BaseException) -> FBTError | None:
        """An exception as the fault of the plugin in whose model, junction or loss it was raised; None if in none."""
        return self._made.culprit(error)

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
        if self.teacher is not None:
            self.teacher.eval()
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
            mode: "loss" for the named, weighted losses; "predict" for all models' logits by name;
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
            return self.predict(inputs, self.names)
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
                needs[role] |= self._made.task_needs if role == STUDENT else set()
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
        single = [(name, self.fusions[n], number) for name, (n, number) in self._made.single.items() if name in wanted]
        return current + single

    @torch.no_grad()
    def predict(self, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Logits (N, classes) of the named models, or single splices ("fusion@S1-3+T4").

        Raises:
            KeyError: for a name that is no model here.
        """
        for name in names:
            if name not in (known := [*self.names, *self._made.single]):
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
            self._made.check_values(losses, self.on)
            self._values_seen.add(kind)
        step = StepLosses(losses)
        return step.total, step

    def val_step(self, data: Any, names: Sequence[str] | None = None) -> list[dict[str, Tensor]]:
        """One step of a validation loop: the labels, and the logits of the named models; by default of all."""
        data = self.data_preprocessor(data, False)
        return [{"labels": data["labels"], **self.predict(data["inputs"], self.names if names is None else names)}]

    test_step = val_step


def start_of(fusion: FusionModel, number: int) -> tuple[str, int]:
    """Where a fusion model's splice starts: the model whose activations it takes, and the stage that gives them."""
    start = fusion.splices[number].start
    return STUDENT if start.owner == "S" else TEACHER, start.last
