"""The models of a distillation, and what they know about images; each stage runs at most once in its own model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from contextlib import nullcontext
from typing import Any, Self

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from ..errors import nearest
from ..models.image_sizes import resized
from ..models.knowledge import Knowledge
from ..models.net_part import Unowned
from ..models.shapes import StageSpec
from ..models.staged import StagedModel
from ..registry.registries import ARCHITECTURES
from .blame import blaming
from .build import FUSION, Config, Parts, family_given, specs_given
from .edge import STUDENT, TEACHER
from .fusion import FusionModel
from .images import check_one_normalisation
from .needs import asked_of_teacher, kept_stages, needed_stages, single_splices, spliced, start_of
from .splice import in_words


class ModelGroup(BaseModel):
    """A student, its frozen teacher if it has one, and fusion models between them.

    Args:
        parts: what it is made of.
        data_preprocessor: mmengine's.

    Attributes:
        image_size, types, fusions: as in :class:`Distiller`.
    """

    student_mean: Tensor
    fusions: dict[str, FusionModel]  # an nn.ModuleDict

    def __init__(self, parts: Parts, data_preprocessor: Config | nn.Module | None) -> None:
        super().__init__(data_preprocessor=data_preprocessor)
        self.image_size, self.types = parts.image_size, parts.types
        self.student = parts.models[STUDENT]
        self._teacher = Unowned(parts.models.get(TEACHER))  # no optimizer, checkpoint, EMA or DDP sees its weights
        self.fusions = nn.ModuleDict(parts.fusions)  # type: ignore[assignment]
        self._kept = kept_stages(parts.edges)
        self._needed: dict[tuple[frozenset[str], tuple[int, ...]], dict[str, set[int]]] = {}
        self._normalised = False
        for role, model in self.models.items():
            channels = (1, model.in_chans, 1, 1)
            for what, values in (("mean", model.mean), ("std", model.std)):
                self.register_buffer(
                    f"{role}_{what}", torch.tensor(values).reshape(1, -1, 1, 1).expand(channels), False
                )

    @property
    def teacher(self) -> StagedModel | None:
        """The frozen teacher, if there is one; it is moved with this module but is not part of its tree."""
        return self._teacher.value

    @property
    def models(self) -> dict[str, StagedModel]:
        """Student and teacher by role."""
        return {STUDENT: self.student} | ({TEACHER: self.teacher} if self.teacher is not None else {})

    @property
    def names(self) -> list[str]:
        """All models: student, teacher, fusions; of a fusion with several splices its name means the first.

        Each splice can be evaluated under a name of its own besides, "fusion@S1-3+T4".
        """
        return [*self.models, *self.fusions]

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        if self.teacher is not None:
            self.teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def init_weights(self) -> None:
        """Nothing: models come initialised. mmengine's own would re-initialise pretrained timm models."""

    def specs(self, role: str) -> list[StageSpec]:
        """Stage outputs of student or teacher for the images that it is given."""
        return specs_given(self.models[role], self.image_size)

    @property
    def families(self) -> dict[str, str]:
        """ "cnn", "attention", "mlp" or "hybrid", of each role's stages for the images that it is given."""
        return {role: family_given(model, self.image_size) for role, model in self.models.items()}

    @property
    def splices(self) -> dict[str, list[str]]:
        """Those of each fusion model, by owner, whatever way the config writes them."""
        return {name: list(map(str, fusion.splices)) for name, fusion in self.fusions.items()}

    def splices_in_words(self) -> list[str]:
        """What each fusion model's splices are with these models, for people to read: "auto is T1-3+S4: ..."."""
        families, alone = self.families, list(self.fusions) == [FUSION]
        return [
            ("" if alone else f"{name}: ") + in_words(fusion.splices, families) for name, fusion in self.fusions.items()
        ]

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def _take_normalised(self) -> None:
        """From now on images come normalised, and are given to all models as they are.

        Raises:
            ConfigError: if no images can be right for all of them.
        """
        check_one_normalisation(self.models)
        for role in self.models:
            getattr(self, f"{role}_mean").zero_()
            getattr(self, f"{role}_std").fill_(1)
        self._normalised = True

    def prepare(self, images: Tensor, role: str) -> Tensor:
        """Images in [0, 1] as a model wants them: resized where it says so, normalised with its own mean and std."""
        images = resized(images, self.models[role].input_size, bounded=not self._normalised)
        return (images - getattr(self, f"{role}_mean")) / getattr(self, f"{role}_std")

    def know(
        self,
        images: Tensor,
        wanted: Set[str],
        teacher: Knowledge | None = None,
        splices: tuple[int, ...] | None = None,
    ) -> dict[str, Knowledge]:
        """Knowledge of the wanted models; each stage runs at most once in its own model.

        Args:
            images: (N, C, H, W) in [0, 1].
            wanted: names of models, or of single splices.
            teacher: what the teacher knows about these images, where that is known already: it is not run on them.
                It has the outputs of the stages that losses take and splices start from.
            splices: number of the splice that each fusion model runs; None is the first of each.

        Raises:
            PluginError: for what a plugin's model or junction raises.
        """
        known: dict[str, Knowledge] = {TEACHER: teacher} if teacher else {}
        starts: dict[str, Mapping[int, Tensor]] = {TEACHER: teacher.stages} if teacher else {}
        splices = splices or (0,) * len(self.fusions)
        needs = self.needs(frozenset(wanted), splices)
        for role, model in self.models.items():
            if role in known or role not in needs:
                continue
            with torch.no_grad() if role == TEACHER else nullcontext(), blaming(ARCHITECTURES, self.types[role]):
                inputs = self.prepare(images, role)
                if role in wanted:
                    known[role] = model.knowledge(inputs, needs[role])
                    starts[role] = known[role].stages
                else:
                    starts[role] = model.stage_outputs(inputs, needs[role])
        for name, fusion, number in spliced(self.fusions, wanted, splices):
            role, last = start_of(fusion, number)
            known[name] = fusion(starts[role][last], number)
        return known

    def asked_of_teacher(self) -> set[int]:
        """Numbers of the teacher's stages that some step needs: those that losses take, and that splices start from."""
        return asked_of_teacher(self._kept, self.fusions)

    @torch.no_grad()
    def ask_teacher(self, images: Tensor, stages: Collection[int] = ()) -> Knowledge:
        """What the teacher knows about images (N, C, H, W) in [0, 1], with the outputs of some stages, by number.

        Raises:
            PluginError: for what a plugin's model raises.
        """
        assert self.teacher is not None
        with blaming(ARCHITECTURES, self.types[TEACHER]):
            return self.teacher.knowledge(self.prepare(images, TEACHER), stages)

    def needs(self, wanted: frozenset[str], splices: tuple[int, ...]) -> dict[str, set[int]]:
        """The models to run, and which of their stages' outputs are needed, for the knowledge of the wanted models.

        Args:
            wanted: names of models, or of single splices.
            splices: number of the splice that each fusion model runs.
        """
        key = wanted, splices
        if key not in self._needed:
            running = spliced(self.fusions, wanted, splices)
            needs = needed_stages(self.models, self._kept, wanted, running)
            for role in needs:
                _ = self.models[role].writes  # found out now: a compiled graph would stop for it
            self._needed[key] = needs
        return self._needed[key]

    @torch.no_grad()
    def predict(self, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Logits (N, classes), or an encoder's features, of the named models or single splices ("fusion@S1-3+T4").

        Raises:
            KeyError: for a name that is no model here.
        """
        return {name: known.output for name, known in self._of(images, names).items()}

    def _of(self, images: Tensor, names: Sequence[str]) -> dict[str, Knowledge]:
        for name in names:
            if name not in (known := [*self.names, *single_splices(self.fusions)]):
                raise KeyError(f"no model {name!r}{nearest(name, known)}")
        knowledge = self.know(images, set(names))
        return {name: knowledge[name] for name in names}
