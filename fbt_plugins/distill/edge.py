"""An edge: what one model gives to another, compared by losses of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..errors import ConfigError, FBTError, nearest
from ..models.knowledge import Batch, Knowledge
from ..registry.registries import LOSSES
from .blame import blaming_loss
from .edge_gates import GATES
from .edge_schedule import TIMES, Schedule, checked_weight
from .given import check_dict
from .loss_contract import (
    ModelInfo,
    check_extra,
    check_labels,
    check_logits,
    check_stages,
    loss_needs,
    set_up,
    wanted_stages,
    weighted,
)
from .zero_gradients import with_idle

SLOTS = ("feature", "logit", "stage")
STUDENT, TEACHER = "student", "teacher"
WITH_STAGES = {STUDENT, TEACHER}
"""The models whose stages a loss can see; a ``stage_loss`` for all edges is one for edges between these."""

TASK = "task"
"""The edge of the task loss: the student receives, and no model gives."""

OPTIONS = ("name", "weight", "detach", "gate", *TIMES, *(f"{s}_loss" for s in SLOTS))
"""What the dict of an edge may say."""


class Edge(nn.Module):
    """Losses in which one model, the giver, plays teacher, and another, the receiver, student.

    The task loss is an edge as well. It has no giver: its loss compares the student with the labels alone.

    Args:
        name: "A_to_B", or "task".
        ends: giver (None where there is none) and receiver.
        losses: by slot ("feature", "logit", "stage"; "task" of the task loss), a config each, or None; it may carry a
            ``weight``.
        places: where in the user's config each of them stands, for messages.
        models: what is known of each model, by name.
        data_info: ``{"num_classes": ..., "num_samples": ..., "num_labelled": ...}`` for losses that ask; the last two
            where known.
        weight: what all losses of the edge are multiplied by.
        detach: whether the giver's knowledge is a constant; False lets gradients reach the giver.
        gate: what the weight is multiplied by in each step, besides; "agreement" is the part of the images for which
            the giver chooses the teacher's class.
        schedule: when in training it is on, and how its weight rises; None is always, with the whole weight.

    Attributes:
        ends: the models whose knowledge it takes.
        types: the registered name of each loss, by the name of its value: "task", or "A_to_B/slot".
        compares: the models whose logits its losses, or its gate, take.
        min_batch: the images that a batch must have for a loss, by the name of its value, where one is too few.

    Raises:
        ConfigError: if a loss or the gate does not fit.
    """

    def __init__(
        self,
        name: str,
        ends: tuple[str | None, str],
        losses: Mapping[str, Mapping[str, Any] | None],
        places: Mapping[str, str],
        models: Mapping[str, ModelInfo],
        data_info: Mapping[str, int],
        weight: float = 1.0,
        detach: bool = True,
        gate: str | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__()
        self.name, self.detach, self.gate = name, detach, gate
        self.giver, self.receiver = ends
        self.compares: set[str] = set()
        self.where = f"model.edges: {name}" if self.giver else f"model.{TASK}_loss"
        self.weight = checked_weight(weight, self.where)
        self.schedule = schedule or Schedule()
        if gate is not None:
            self._check_gate(models)
        self.ends = frozenset(end for end in (*ends, TEACHER if gate else None) if end)
        self.losses = nn.ModuleDict()
        self.projectors = nn.ModuleDict()
        self.weights: dict[str, float] = {}
        self.types: dict[str, str] = {}
        self.min_batch: dict[str, int] = {}
        self.needs: dict[str, set[int]] = {end: set() for end in ends if end}
        for slot, config in losses.items():
            if config is None:
                continue
            check_dict(config, LOSSES, places[slot])
            options = dict(config)
            self.weights[slot] = checked_weight(options.pop("weight", 1.0), places[slot])
            try:
                loss = LOSSES.build(options, also=("weight", *(TIMES if self.giver is None else ())))
            except FBTError as error:
                raise ConfigError([f"{places[slot]}: {line}" for line in str(error).splitlines()]) from error
            kind = self.types[self.value_name(slot)] = options["type"]
            with LOSSES.blame(kind):
                self._connect(slot, kind, loss, models, data_info)
            self.losses[slot] = loss
        if not self.losses:
            raise ConfigError(f"model.edges: {name} has no loss: set feature_loss, logit_loss or stage_loss")

    def value_name(self, slot: str) -> str:
        """What a loss's value is called: "A_to_B/slot", and of the task loss "task"."""
        return f"{self.name}/{slot}" if self.giver else self.name

    def _check_gate(self, models: Mapping[str, ModelInfo]) -> None:
        if self.gate not in GATES:
            raise ConfigError(f"{self.where}: no gate {self.gate!r}{nearest(self.gate, GATES)}")
        if TEACHER not in models or self.giver == TEACHER:
            why = "there is no teacher" if TEACHER not in models else "the giver is the teacher itself"
            raise ConfigError(f"{self.where}: gate={self.gate!r} compares with the teacher, and {why}")
        self._take_logits(f"gate={self.gate!r}", models, (self.giver, TEACHER))

    def _take_logits(self, what: str, models: Mapping[str, ModelInfo], ends: Iterable[str | None]) -> None:
        for model in filter(None, ends):
            check_logits(what, self.where, model, models[model])
            self.compares.add(model)

    def _connect(
        self, slot: str, kind: str, loss: Any, models: Mapping[str, ModelInfo], data_info: Mapping[str, int]
    ) -> None:
        """What a loss needs of the models, and its own setup."""
        receiver, giver = models[self.receiver], models[self.giver] if self.giver else None
        needs = loss_needs(loss, kind)
        for model, wanted in zip((self.receiver, self.giver), wanted_stages(needs), strict=True):
            if model:
                check_stages(wanted, kind, self.where, model, models[model])
                self.needs[model] |= wanted
        check_extra(needs, kind, self.where, self.receiver, receiver)
        if (smallest := needs.get("min_batch", 1)) > 1:
            self.min_batch[self.value_name(slot)] = smallest
        if needs.get("logits", slot in ("logit", TASK)):
            self._take_logits(kind, models, (self.receiver, self.giver))
        if needs.get("labels") or giver is None:
            check_labels(kind, self.where, data_info)
        if slot == "feature" and hasattr(loss, "setup"):
            for model in self.needs:
                self._one_width(kind, model, models[model])
        if giver and needs.get("same_width") and {*receiver.widths, *giver.widths} != {giver.num_features}:
            self.projectors[slot] = SameWidth(receiver.widths, giver.widths)
        set_up(loss, receiver, giver, data_info)

    def _one_width(self, kind: str, model: str, info: ModelInfo) -> None:
        if info.others:
            widths = " or ".join(map(str, sorted(info.widths)))
            raise ConfigError(
                f"{self.where}: features of {model!r} are {widths} wide, for its splices end in both "
                f"models, and {kind} takes one width; make two fusions of them"
            )

    def unused(self, model: str, width: int) -> list[str]:
        """The modules that this edge does not use where all features of one of its ends have one width.

        Args:
            model: which end.
            width: of its features.

        Returns:
            Their names in this module.
        """
        received = model == self.receiver
        return [
            f"projectors.{slot}.{name}"
            for slot, projector in self.projectors.items()
            for name in projector.unused(width, received)  # type: ignore[operator, union-attr]
        ]

    def forward(self, knowledge: Mapping[str, Knowledge], batch: Batch) -> dict[str, Tensor]:
        """The edge's weighted losses, by the names of their values; a gate's part in them has no gradient.

        Args:
            knowledge: of each model, by name.
            batch: labels and positions.

        Raises:
            PluginError: for what a loss's code raises.
            ConfigError: for a loss's ValueError, which is how it says that it lacks something.
        """
        received = knowledge[self.receiver]
        given = knowledge[self.giver] if self.giver else None
        if given is not None and self.detach:
            given = given.detach()
        gates = [GATES[self.gate](given, knowledge[TEACHER])] if self.gate and given is not None else []
        values = {}
        for slot, loss in self.losses.items():
            view = received
            if slot in self.projectors and given is not None:
                features = self.projectors[slot](received.features, given.features.shape[1])
                view = Knowledge(features, received.logits, received.stages, received.extra)
            name = self.value_name(slot)
            with blaming_loss(self.types[name], name):
                value = loss(view, given, batch)
            values[name] = weighted(value, self.weight * self.weights[slot], *gates)
        return values


class SameWidth(nn.Module):
    """Features of one of some widths as wide as the giver's of the step: a linear map for each two that differ.

    Args:
        received, given: all widths that features of receiver and giver have.
    """

    def __init__(self, received: Sequence[int], given: Sequence[int]) -> None:
        super().__init__()
        self.pairs = [(width, wanted) for width in received for wanted in given if width != wanted]
        self.maps = nn.ModuleDict({self.name(*pair): nn.Linear(*pair) for pair in self.pairs})

    @staticmethod
    def name(width: int, wanted: int) -> str:
        """Of the map between two widths."""
        return f"{width}_to_{wanted}"

    def forward(self, features: Tensor, wanted: int) -> Tensor:
        """(N, D) -> (N, wanted)."""
        name = self.name(features.shape[1], wanted)
        if name in self.maps:
            features = self.maps[name](features)
        return with_idle(features, [layer for other, layer in self.maps.items() if other != name])

    def unused(self, width: int, received: bool) -> list[str]:
        """Names of the maps that are not used where all features of the receiver (or the giver) have one width."""
        return [f"maps.{self.name(*pair)}" for pair in self.pairs if pair[0 if received else 1] != width]


def split_name(name: str, models: Mapping[str, Any]) -> tuple[str, str]:
    """ "A_to_B" as (A, B).

    Raises:
        ConfigError: if it is not of that form, or A or B is no model of this config.
    """
    giver, found, receiver = str(name).partition("_to_")
    if not found:
        possible = [f"{a}_to_{b}" for a in models for b in models if a != b and b != TEACHER]
        raise ConfigError(f"model.edges: {name!r}: write giver_to_receiver{nearest(name, possible)}")
    for model in (giver, receiver):
        if model not in models:
            raise ConfigError(f"model.edges: {name!r}: there is no model {model!r} here{nearest(model, models)}")
    if receiver == TEACHER or giver == receiver:
        raise ConfigError(
            f"model.edges: {name!r}: the {receiver} cannot receive"
            + (" from itself" if giver == receiver else ": it is frozen")
        )
    return giver, receiver


def parse_edges(
    edges: Sequence[str | Mapping[str, Any]], defaults: Mapping[str, Mapping[str, Any] | None]
) -> list[dict[str, Any]]:
    """The arguments of each :class:`Edge`, from names and dicts with losses and weights of their own.

    Args:
        edges: "A_to_B", or ``dict(name="A_to_B", weight=..., detach=..., gate=..., begin=..., logit_loss=...)``, any
            loss, and any argument of a :class:`Schedule`.
        defaults: the config's losses by slot, for edges that say nothing.

    Raises:
        ConfigError: for an unknown key, a repeated edge, or an entry of another form.
    """
    if isinstance(edges, str) or not isinstance(edges, Sequence):
        raise ConfigError(f"model: edges must be a list, not {edges!r}")
    parsed: list[dict[str, Any]] = []
    for entry in edges:
        if not isinstance(entry, str | Mapping):
            raise ConfigError(f"model.edges: an edge is a name or a dict, not {entry!r}")
        options: dict[str, Any] = {"name": entry} if isinstance(entry, str) else dict(entry)
        unknown = [k for k in options if k not in OPTIONS]
        if unknown or "name" not in options:
            what = f"no option {unknown[0]!r}{nearest(unknown[0], OPTIONS)}" if unknown else "an edge needs a 'name'"
            raise ConfigError(f"model.edges: {what}")
        if options["name"] in [p["name"] for p in parsed]:
            raise ConfigError(f"model.edges: {options['name']} is there twice")
        own = {slot for slot in SLOTS if f"{slot}_loss" in options}
        with_stages = set(str(options["name"]).split("_to_")) <= WITH_STAGES
        own_or_default = {s: c for s, c in defaults.items() if s != "stage" or with_stages}
        losses = {slot: options.pop(f"{slot}_loss", own_or_default.get(slot)) for slot in SLOTS}
        place = f"model.edges.{options['name']}"
        places = {slot: f"{place}.{slot}_loss" if slot in own else f"model.{slot}_loss" for slot in SLOTS}
        parsed.append({**options, "losses": losses, "places": places})
    return parsed
