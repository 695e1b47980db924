"""An edge: what one model gives to another, compared by losses of its own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ConfigError, FBTError, nearest
from .gate import GATES
from .idle import with_idle
from .knowledge import Batch, Knowledge
from .registry import LOSSES, short
from .schedule import TIMES, checked_weight
from .staged import StageSpec

SLOTS = ("feature", "logit", "stage")
TEACHER = "teacher"
WITH_STAGES = {"student", TEACHER}
"""The models whose stages a loss can see; a ``stage_loss`` for all edges is one for edges between these."""

NEEDS = ("same_width", "stages", "student_stages", "student_extra")
_OPTIONS = ("name", "weight", "detach", "gate", *TIMES, *(f"{s}_loss" for s in SLOTS))


@dataclass(frozen=True)
class ModelInfo:
    """What an edge is told about a model at either end.

    Attributes:
        specs: outputs of its stages; empty where it offers none to losses.
        num_features: width of its features.
        others: further widths that they have in some steps: of a fusion model whose splices end in both models.
        extra: what it tells besides, in ``Knowledge.extra``.
    """

    specs: Sequence[StageSpec]
    num_features: int
    others: Sequence[int] = ()
    extra: Collection[str] = ()

    @property
    def widths(self) -> list[int]:
        """All widths of its features."""
        return [self.num_features, *self.others]


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


def loss_needs(loss: Any, kind: str) -> Mapping[str, Any]:
    """What a loss says it needs of the models, once it was seen to be readable.

    Args:
        loss: any loss; most need nothing.
        kind: the name that it is registered under, for messages.

    Raises:
        PluginError: if ``needs`` is no dict, has a key that nobody reads, or stages that are no numbers from 1.
    """
    needs = getattr(loss, "needs", {})
    if not isinstance(needs, Mapping):
        raise LOSSES.fault(kind, f"has needs of {short(needs)}, not a dict such as {{'same_width': True}}")
    if foreign := [str(key) for key in needs if key not in NEEDS]:
        raise LOSSES.fault(kind, f"needs {foreign[0]!r}{nearest(foreign[0], NEEDS)}")
    if not isinstance(needs.get("same_width", False), bool):
        raise LOSSES.fault(kind, f"needs same_width={short(needs['same_width'])}, not True or False")
    for key in ("stages", "student_stages"):
        stages = needs.get(key, ())
        if isinstance(stages, str) or not isinstance(stages, Iterable) or not all(map(_is_stage, stages)):
            raise LOSSES.fault(kind, f"needs {key}={short(stages)}, not stage numbers from 1 such as (3, 4)")
    names = needs.get("student_extra", ())
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise LOSSES.fault(kind, f"needs student_extra={short(names)}, not names such as ('class_logits',)")
    return needs


def _is_stage(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 1


def wanted_stages(needs: Mapping[str, Any]) -> tuple[set[int], set[int]]:
    """The stages that a loss looks at: of the receiver, and of the giver."""
    both = set(needs.get("stages", ()))
    return both | set(needs.get("student_stages", ())), both


def check_stages(wanted: Iterable[int], kind: str, where: str, model: str, info: ModelInfo) -> None:
    """Looks whether a model has the stages that a loss wants.

    Raises:
        ConfigError: if it has not that many.
    """
    count = len(info.specs)
    if lacking := [n for n in wanted if n > count]:
        has = f"has {count}" if count else "gives features and logits only"
        raise ConfigError(f"{where}: {kind} needs stage {min(lacking)} of the {model}, which {has}")


def check_extra(needs: Mapping[str, Any], kind: str, where: str, model: str, info: ModelInfo) -> None:
    """Looks whether a model tells what a loss wants of the student besides features and logits.

    Raises:
        ConfigError: if it does not.
    """
    if lacking := [name for name in needs.get("student_extra", ()) if name not in info.extra]:
        told = ", ".join(map(repr, sorted(info.extra))) or "features and logits only"
        raise ConfigError(f"{where}: {kind} needs {lacking[0]!r} of the {model}, which gives {told}")


def set_up(loss: Any, receiver: ModelInfo, giver: ModelInfo | None, data_info: Mapping[str, int]) -> None:
    """Calls a loss's ``setup``, if it has one.

    Args:
        loss: any loss.
        receiver, giver: the models that it will compare; a task loss has no giver.
        data_info: ``{"num_classes": ..., "num_samples": ...}``; the widths of the two models' features join it.
    """
    if not hasattr(loss, "setup"):
        return
    widths = {"student_features": receiver.num_features}
    if giver is not None:
        widths["teacher_features"] = giver.num_features
    loss.setup(receiver.specs, giver.specs if giver else (), {**data_info, **widths})


def weighted(loss: Tensor, weight: float, *factors: Tensor) -> Tensor:
    """``weight * loss``, and the loss itself where the weight is 1 or it is nothing that could be weighted.

    Args:
        loss: what a loss returned.
        weight: a number.
        factors: scalars that it is multiplied by as well.
    """
    if not isinstance(loss, Tensor):
        return loss
    value = loss if weight == 1 else weight * loss
    for factor in factors:
        value = factor * value
    return value


def value_fault(value: object) -> str | None:
    """What is wrong with a loss's value, as the rest of a sentence whose subject is the loss; None if nothing is."""
    if not isinstance(value, Tensor):
        return f"returned {short(value)}, not a scalar tensor"
    if value.ndim or not value.is_floating_point():
        kind = f"a tensor of shape {tuple(value.shape)}" if value.ndim else f"a scalar of {value.dtype}"
        return f"returned {kind}, not a scalar of a floating type: reduce it, by .mean() for example"
    if torch.is_grad_enabled() and not value.requires_grad:
        return "returned a scalar without gradient: it must be computed from what the student knows, not detached"
    return None


def out_of_reach(value: Tensor, module: nn.Module) -> list[str]:
    """Names of a module's trained parameters that a value's gradient does not lead back to."""
    reached: set[int] = set()
    seen, waiting = set(), [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            reached.add(id(leaf))
        waiting += [before for before, _ in node.next_functions]
    return [name for name, p in module.named_parameters() if p.requires_grad and id(p) not in reached]


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


class StepLosses(Mapping[str, Tensor]):
    """The named, weighted losses of one step, and their sum under "loss", as they are on the device.

    They are one tensor, so that a loop can keep or read all of them at once.

    Attributes:
        names: of the losses.
        stacked: (number of losses,), without gradient.
        total: what is descended, with gradient.
    """

    def __init__(self, losses: Mapping[str, Tensor]) -> None:
        self.names = tuple(losses)
        stacked = torch.stack([value.float() for value in losses.values()])
        self.total, self.stacked = stacked.sum(), stacked.detach()

    def __getitem__(self, name: str) -> Tensor:
        return self.total.detach() if name == "loss" else self.stacked[self.names.index(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(("loss", *self.names))

    def __len__(self) -> int:
        return len(self.names) + 1
