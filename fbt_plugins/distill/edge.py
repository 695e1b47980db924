"""An edge: what one model gives to another, compared by losses of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..errors import ConfigError, FBTError, nearest
from ..models.knowledge import Batch, Knowledge
from ..registry.registries import LOSSES
from .edge_gates import GATES
from .edge_schedule import TIMES, checked_weight
from .loss_contract import ModelInfo, check_extra, check_stages, loss_needs, set_up, wanted_stages, weighted
from .zero_gradients import with_idle

SLOTS = ("feature", "logit", "stage")
TEACHER = "teacher"
WITH_STAGES = {"student", TEACHER}
"""The models whose stages a loss can see; a ``stage_loss`` for all edges is one for edges between these."""

_OPTIONS = ("name", "weight", "detach", "gate", *TIMES, *(f"{s}_loss" for s in SLOTS))


class Edge(nn.Module):
    """``giver_to_receiver``: losses in which the giver plays teacher and the receiver student.

    Args:
        name: "A_to_B".
        losses: by slot ("feature", "logit", "stage"), a config each, or None; it may carry a ``weight``.
        places: where in the user's config each of them stands, for messages.
        models: what is known of each model, by name.
        data_info: ``{"num_classes": ..., "num_samples": ...}`` for losses that ask, the second where known.
        weight: of the whole edge.
        detach: whether the giver's knowledge is a constant.
        gate: one of ``GATES``, what the weight is multiplied by in each step; None is nothing.

    Attributes:
        ends: the models whose knowledge it takes.

    Raises:
        ConfigError: if a model, a loss or the gate does not fit.
    """

    def __init__(
        self,
        name: str,
        losses: Mapping[str, Mapping[str, Any] | None],
        places: Mapping[str, str],
        models: Mapping[str, ModelInfo],
        data_info: Mapping[str, int],
        weight: float = 1.0,
        detach: bool = True,
        gate: str | None = None,
    ) -> None:
        super().__init__()
        self.name, self.detach, self.gate = name, detach, gate
        self.weight = checked_weight(weight, f"model.edges: {name}")
        self.giver, self.receiver = split_name(name, models)
        if gate is not None:
            self._check_gate(models)
        self.ends = frozenset({self.giver, self.receiver} | ({TEACHER} if gate else set()))
        self.losses = nn.ModuleDict()
        self.projectors = nn.ModuleDict()
        self.weights: dict[str, float] = {}
        self.types: dict[str, str] = {}
        self.needs: dict[str, set[int]] = {self.giver: set(), self.receiver: set()}
        for slot, config in losses.items():
            if config is None:
                continue
            options = dict(config)
            self.weights[slot] = checked_weight(options.pop("weight", 1.0), places[slot])
            try:
                loss = LOSSES.build(options)
            except FBTError as error:
                raise ConfigError([f"{places[slot]}: {line}" for line in str(error).splitlines()]) from error
            self.types[slot] = options["type"]
            with LOSSES.blame(options["type"]):
                self._connect(slot, loss, models, data_info)
            self.losses[slot] = loss
        if not self.losses:
            raise ConfigError(f"model.edges: {name} has no loss: set feature_loss, logit_loss or stage_loss")

    def _check_gate(self, models: Mapping[str, ModelInfo]) -> None:
        if self.gate not in GATES:
            raise ConfigError(f"model.edges: {self.name}: no gate {self.gate!r}{nearest(self.gate, GATES)}")
        if TEACHER not in models or self.giver == TEACHER:
            why = "there is no teacher" if TEACHER not in models else "the giver is the teacher itself"
            raise ConfigError(f"model.edges: {self.name}: gate={self.gate!r} compares with the teacher, and {why}")

    def _connect(self, slot: str, loss: Any, models: Mapping[str, ModelInfo], data_info: Mapping[str, int]) -> None:
        """What a loss needs of the two models, and its own setup."""
        giver, receiver = models[self.giver], models[self.receiver]
        needs = loss_needs(loss, self.types[slot])
        for model, wanted in zip((self.receiver, self.giver), wanted_stages(needs), strict=True):
            check_stages(wanted, self.types[slot], f"model.edges: {self.name}", model, models[model])
            self.needs[model] |= wanted
        check_extra(needs, self.types[slot], f"model.edges: {self.name}", self.receiver, receiver)
        if slot == "feature" and hasattr(loss, "setup"):
            for model in (self.giver, self.receiver):
                self._one_width(model, models[model])
        if needs.get("same_width") and {*receiver.widths, *giver.widths} != {giver.num_features}:
            self.projectors[slot] = SameWidth(receiver.widths, giver.widths)
        set_up(loss, receiver, giver, data_info)

    def _one_width(self, model: str, info: ModelInfo) -> None:
        if info.others:
            widths = " or ".join(map(str, sorted(info.widths)))
            raise ConfigError(
                f"model.edges: {self.name}: features of {model!r} are {widths} wide, for its splices end in both "
                f"models, and {self.types['feature']} takes one width; make two fusions of them"
            )

    def state_of(self, model: str, width: int) -> dict[str, Tensor]:
        """The state of this edge where one of its ends has features of one width alone.

        Args:
            model: which end.
            width: of its features.
        """
        place = 0 if model == self.receiver else 1

        def stays(key: str) -> bool:
            names = key.split(".")
            return names[0] != "projectors" or names[3].split("_to_")[place] == str(width)

        return {key: value for key, value in self.state_dict().items() if stays(key)}

    def forward(self, knowledge: Mapping[str, Knowledge], batch: Batch) -> dict[str, Tensor]:
        """The edge's weighted losses by slot; none of a gate's gradient is in them.

        Args:
            knowledge: of each model, by name.
            batch: labels and positions.
        """
        given, received = knowledge[self.giver], knowledge[self.receiver]
        if self.detach:
            given = given.detach()
        gates = [GATES[self.gate](given, knowledge[TEACHER])] if self.gate else []
        values = {}
        for slot, loss in self.losses.items():
            view = received
            if slot in self.projectors:
                features = self.projectors[slot](received.features, given.features.shape[1])
                view = Knowledge(features, received.logits, received.stages, received.extra)
            values[slot] = weighted(loss(view, given, batch), self.weight * self.weights[slot], *gates)
        return values


class SameWidth(nn.Module):
    """Features of one of some widths as wide as the giver's of the step: a linear map for each two that differ.

    Args:
        received, given: all widths that features of receiver and giver have.
    """

    def __init__(self, received: Sequence[int], given: Sequence[int]) -> None:
        super().__init__()
        pairs = [(width, wanted) for width in received for wanted in given if width != wanted]
        self.maps = nn.ModuleDict({f"{width}_to_{wanted}": nn.Linear(width, wanted) for width, wanted in pairs})

    def forward(self, features: Tensor, wanted: int) -> Tensor:
        """(N, D) -> (N, wanted)."""
        name = f"{features.shape[1]}_to_{wanted}"
        if name in self.maps:
            features = self.maps[name](features)
        return with_idle(features, [layer for other, layer in self.maps.items() if other != name])


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
        unknown = [k for k in options if k not in _OPTIONS]
        if unknown or "name" not in options:
            what = f"no option {unknown[0]!r}{nearest(unknown[0], _OPTIONS)}" if unknown else "an edge needs a 'name'"
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
