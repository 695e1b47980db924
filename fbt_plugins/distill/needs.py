"""What a step runs: which losses, which models, and which of their stages' outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from .edge import STUDENT, TEACHER, Edge
from .fusion import FusionModel

Running = tuple[str, FusionModel, int]
"""The name that a fusion model's knowledge gets, the fusion model, and the number of the splice that it runs."""


@dataclass(frozen=True)
class Step:
    """What one training step runs. It is made before the step, and nothing changes it.

    Attributes:
        splices: number of the splice that each fusion model runs, in the order of the fusion models.
        on: names of the edges whose losses are computed.
        weights: what the losses of an edge are multiplied by, by its name, where that is not 1.
    """

    splices: tuple[int, ...]
    on: tuple[str, ...]
    weights: Mapping[str, float]


def start_of(fusion: FusionModel, number: int) -> tuple[str, int]:
    """Where a fusion model's splice starts: the model whose activations it takes, and the stage that gives them."""
    start = fusion.splices[number].start
    return STUDENT if start.owner == "S" else TEACHER, start.last


def single_splices(fusions: Mapping[str, FusionModel]) -> dict[str, tuple[FusionModel, int]]:
    """Fusion model and number of each splice, by the splice's own name, "fusion@S1-3+T4"."""
    return {
        f"{name}@{splice}": (fusion, number)
        for name, fusion in fusions.items()
        for number, splice in enumerate(fusion.splices)
    }


def spliced(fusions: Mapping[str, FusionModel], wanted: Set[str], splices: Sequence[int]) -> list[Running]:
    """The wanted fusion models and single splices, in one order whatever the set's is."""
    drawn = zip(fusions.items(), splices, strict=True)
    current = [(name, fusion, number) for (name, fusion), number in drawn if name in wanted]
    return current + [(name, *single) for name, single in single_splices(fusions).items() if name in wanted]


def kept_stages(edges: Mapping[str, Edge]) -> dict[str, set[int]]:
    """Numbers of the stages whose outputs the losses of any edge take, of student and teacher."""
    return {role: set().union(*(edge.needs.get(role, ()) for edge in edges.values())) for role in (STUDENT, TEACHER)}


def needed_stages(
    roles: Iterable[str], kept: Mapping[str, Set[int]], wanted: Set[str], running: Iterable[Running]
) -> dict[str, set[int]]:
    """The models to run, and which of their stages' outputs are needed, for the knowledge of the wanted models.

    Args:
        roles: student, and teacher where there is one.
        kept: stages that losses take, of :func:`kept_stages`.
        wanted: names of models, or of single splices.
        running: the wanted of the fusion models.
    """
    needs = {role: set(kept[role]) for role in roles if role in wanted}
    for _, fusion, number in running:
        role, last = start_of(fusion, number)
        needs.setdefault(role, set()).add(last)
    return needs


def asked_of_teacher(kept: Mapping[str, Set[int]], fusions: Mapping[str, FusionModel]) -> set[int]:
    """Numbers of the teacher's stages that some step needs: those that losses take, and that splices start from."""
    starts = (start_of(fusion, i) for fusion in fusions.values() for i in range(len(fusion.splices)))
    return {*kept[TEACHER]} | {last for role, last in starts if role == TEACHER}
