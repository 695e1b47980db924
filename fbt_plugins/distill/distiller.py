"""The distiller: one teacher, one student, fusion models between them, and the losses along its edges."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Self

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..errors import ConfigError
from ..models.knowledge import Batch, Knowledge
from ..models.staged import StagedModel
from ..randomness import derive_seed
from ..registry.loading import load_plugins
from .build import Config, build
from .edge import Edge
from .given import checked_size
from .images import check_images, check_labels
from .loss_contract import StepLosses
from .model_group import ModelGroup
from .needs import Step
from .unreached import check_values, freeze_unreached


@MODELS.register_module()
class Distiller(ModelGroup):
    """Transfers knowledge along edges between a frozen teacher, fusion models and a student.

    Without a teacher it is plain training of the student, which is how teachers are made.

    It is an ``nn.Module`` like any other, which a loop of one's own calls: ``distiller(images, labels)`` gives the
    losses by name, and their sum is what is descended. ``distiller.student.net`` is what one keeps; ``state_dict()``
    has what training goes on from, without the teacher. mmengine's Runner treats it as any model of its own.

    Args:
        student: config of the model that is trained, or the model itself.
        teacher: config of the frozen model, or the model itself. Without one the student is trained alone.
        fusion: config of a fusion model (:class:`FusionModel`), or a dict of named ones.
        edges: who teaches whom: names ("teacher_to_student"), or dicts with losses and weights of their own.
        feature_loss: loss of features, for edges that have none of their own.
        logit_loss: loss of logits, for edges that have none of their own.
        stage_loss: loss of stage outputs, for edges between teacher and student that have none of their own.
        task_loss: loss of the student against the labels; may carry a ``weight``, and times as edges do.
        image_size: (height, width) of the images that the pipeline yields; None is the student's own size.
        data_info: ``{"num_classes": ..., "num_samples": ..., "num_labelled": ...}`` of the training data, where known;
            images that have no labels have no classes.
        data_preprocessor: mmengine's.

    Attributes:
        image_size: (height, width) of the images.
        types: names of what was built from a registry, by role, fusion model or loss.
        fusions: fusion models by name.
        edges: by name; the first is "task", the task loss, where there is one.
        step: what the next training step runs (:meth:`plan`); before the first plan everything, with whole weights.

    Raises:
        ConfigError: with everything that does not fit, one line each.
    """

    edges: dict[str, Edge]  # an nn.ModuleDict

    def __init__(
        self,
        student: Config | nn.Module,
        teacher: Config | nn.Module | None = None,
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
        load_plugins()
        defaults = {"feature": feature_loss, "logit": logit_loss, "stage": stage_loss}
        parts = build(
            student, teacher, fusion, edges, defaults, task_loss, image_size, {} if data_info is None else data_info
        )
        super().__init__(parts, data_preprocessor)
        self.edges = nn.ModuleDict(parts.edges)  # type: ignore[assignment]
        self._steps_seen: set[tuple[tuple[int, ...], tuple[str, ...]]] = set()
        self._images_seen = False
        self.step = self.plan()

    @classmethod
    def from_models(
        cls,
        teacher: StagedModel | nn.Module | None,
        student: StagedModel | nn.Module,
        *,
        fusion: Config | None = None,
        edges: Sequence[str | Config] = (),
        feature_loss: Config | None = None,
        logit_loss: Config | None = None,
        stage_loss: Config | None = None,
        task_loss: Config | None = None,
        image_size: int | tuple[int, int] | None = None,
        data_info: Mapping[str, int] | None = None,
        normalised: bool = False,
    ) -> Self:
        """A distiller of models that are there already.

        Neither is copied. The student is trained in place, and put into train mode. The teacher is frozen
        (``requires_grad`` False, and eval mode, in which it stays) and moves with the distiller; nothing else of it
        changes.

        Args:
            teacher, student: :class:`StagedModel`, or networks, which :meth:`StagedModel.of` cuts.
            fusion, edges, feature_loss, logit_loss, stage_loss, task_loss, data_info: as in a config.
            image_size: of the images in pixels, one number for a square; None is the student's own size.
            normalised: whether the images come normalised, and are given to both models as they are. Else they are in
                [0, 1], and each model gets them normalised by its own mean and std.

        Raises:
            ConfigError: with everything that does not fit, one line each.
        """
        if not isinstance(normalised, bool):
            raise ConfigError(f"normalised: expected True or False, got {normalised!r}")
        size = checked_size(image_size)
        losses = feature_loss, logit_loss, stage_loss, task_loss
        distiller = cls(student, teacher, fusion, edges, *losses, image_size=size, data_info=data_info).train()
        if normalised:
            distiller._take_normalised()
        return distiller

    def plan(self, seed: int | None = None, progress: float | None = None) -> Step:
        """What a training step runs: one splice of each fusion model, and the losses that are on.

        Args:
            seed: of the step, the same in all processes; None takes the first of several splices.
            progress: fraction of training that is done before it; None has all losses on, with their whole weights.
        """
        fusions = enumerate(self.fusions.values())
        splices = tuple(0 if seed is None else fusion.draw(derive_seed(seed, number)) for number, fusion in fusions)
        weights = {
            name: 1.0 if progress is None else edge.schedule.weight(progress) for name, edge in self.edges.items()
        }
        on = tuple(n for n, edge in self.edges.items() if progress is None or edge.schedule.covers(progress))
        step = Step(splices, on, {name: weights[name] for name in on if weights[name] != 1})
        self.needs(self.in_losses(on), splices)  # remembered now: a compiled graph does not like to see it change
        return step

    def in_losses(self, on: Collection[str]) -> frozenset[str]:
        """The models whose knowledge the losses of some edges take."""
        return frozenset(end for name in on for end in self.edges[name].ends)

    def forward(
        self,
        inputs: Tensor,
        labels: Tensor | None = None,
        index: Tensor | None = None,
        mode: str | None = None,
        view: Tensor | None = None,
        teacher_features: Tensor | None = None,
        teacher_logits: Tensor | None = None,
        teacher_stages: Mapping[int, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The losses of one batch in this step (:meth:`losses`): named, weighted scalars, whose sum is descended.

        Args:
            inputs: images (N, C, H, W) in [0, 1], or normalised if :meth:`from_models` was told so.
            labels: (N,) or (N, classes), as in :class:`Batch`; None where no loss takes any.
            index: (N,) positions in the data set, for losses that remember them.
            mode: mmengine says "loss". None is anybody else's call, whose first images and labels are looked at.
            view: (N,) which view of its image each input is, where the data set has fixed ones; only passed through.
            teacher_features, teacher_logits: (N, D) and (N, C) (None of an encoder), what the teacher knows about these
                very inputs; losses then take them, in float32, and the teacher is not run on the images.
            teacher_stages: with them, outputs of the teacher's stages by number, all of :meth:`asked_of_teacher`.

        Raises:
            ConfigError: if the first images are no such images, or the labels no such labels.
        """
        if mode not in (None, "loss"):
            raise ValueError(f"mode is 'loss', or None, not {mode!r}; predict() gives logits")
        if mode is None and not self._images_seen and not torch.compiler.is_compiling():
            self._look_at(inputs, labels)
            self._images_seen = True
        given = None
        if teacher_features is not None:
            stages = {number: output.float() for number, output in (teacher_stages or {}).items()}
            logits = None if teacher_logits is None else teacher_logits.float()
            given = Knowledge(teacher_features.float(), logits, stages)
        return self.losses(inputs, Batch(labels, index), given)

    def _look_at(self, images: Any, labels: Any) -> None:
        edges = self.edges.values()
        fixed = self.fusions or any(any(edge.needs.values()) for edge in edges)
        channels = {model.in_chans for model in self.models.values()}
        check_images(images, channels, self.image_size if fixed else None, self._normalised)
        if labels is not None:
            compared = any(edge.compares for edge in edges)
            check_labels(labels, len(images), self.student.num_classes if compared else None)

    def losses(self, images: Tensor, batch: Batch, teacher: Knowledge | None = None) -> dict[str, Tensor]:
        """All losses of one batch in this step, named "task" or "edge/slot", each with its weights.

        Those that are off are 0, and nothing was computed for them.

        Args:
            images: (N, C, H, W) in [0, 1].
            batch: labels and positions.
            teacher: as in :meth:`know`.
        """
        values = self.values(images, batch, self.step.splices, self.step.on, teacher)
        for edge_name, weight in self.step.weights.items():
            for name in self.edges[edge_name].types:
                values[name] = values[name] * weight
        return values

    def values(
        self,
        images: Tensor,
        batch: Batch,
        splices: tuple[int, ...],
        on: tuple[str, ...],
        teacher: Knowledge | None = None,
    ) -> dict[str, Tensor]:
        """What :meth:`losses` gives, without the weights of the moment: one graph, which may be compiled, serves all.

        Args:
            images, batch, teacher: as there.
            splices, on: of the :class:`Step`.
        """
        known = self.know(images, self.in_losses(on), teacher, splices)
        zero = torch.zeros((), device=images.device)
        values: dict[str, Tensor] = {}
        for name, edge in self.edges.items():
            values |= edge(known, batch) if name in on else dict.fromkeys(edge.types, zero)
        return values

    def parse_losses(self, losses: dict[str, Tensor]) -> tuple[Tensor, StepLosses]:  # type: ignore[override]
        """The sum to descend, and all named losses as they are on the device, unread.

        Raises:
            PluginError: in the first step of each splice and of each set of losses that are on, if a loss returned
                anything but a scalar with a gradient, or if parameters of a loss or a junction get none.
        """
        kind = self.step.splices, self.step.on
        if kind not in self._steps_seen:
            check_values(self, losses)
            self._steps_seen.add(kind)
        step = StepLosses(losses)
        return step.total, step

    def freeze_unreached(self, **batch: Tensor) -> list[str]:
        """Freezes parameters that no loss reaches, which DistributedDataParallel would wait for in vain.

        Examples are the classifier's where only features are compared, and L2G's where no edge leads to the fusion
        model. Every process calls this, with the distiller on its device, before optimizer and
        DistributedDataParallel exist.

        Args:
            batch: arguments of :meth:`forward` for one step that finds them; by default blank images.

        Returns:
            Their names.
        """
        return freeze_unreached(self, batch)

    @torch.no_grad()
    def sample(
        self, data: Any, names: Sequence[str] | None = None, wants: Collection[str] = ("logits",)
    ) -> dict[str, Tensor]:
        """What metrics are told of a batch.

        Args:
            data: of the loader.
            names: of models; by default all.
            wants: "logits", "features", or both.

        Returns:
            "labels" (N,); NAME: logits (N, C) of each model that has as many classes as the student; and for
            metrics of features "index" (N,), and "features/NAME" (N, D) of each model.
        """
        data = self.data_preprocessor(data, False)
        known = self._of(data["inputs"], self.names if names is None else names)
        sample = {"labels": data["labels"]}
        if "logits" in wants:
            logits = {name: k.logits for name, k in known.items() if k.logits is not None}
            sample |= {name: z for name, z in logits.items() if z.shape[1] == self.student.num_classes}
        if "features" in wants:
            sample["index"] = data["index"]
            sample |= {f"features/{name}": k.features for name, k in known.items()}
        return sample

    def val_step(
        self, data: Any, names: Sequence[str] | None = None, wants: Collection[str] = ("logits",)
    ) -> list[dict[str, Tensor]]:
        """One step of a validation loop: the :meth:`sample` of its batch, as mmengine has it."""
        return [self.sample(data, names, wants)]

    test_step = val_step
