"""What a model's stages are, and which splices of two models fit: tables before any training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ..distill.fusion import FusionStrategy, build_junctions, ends
from ..distill.splice import AUTO, Splice, enumerate_splices, more_local
from ..errors import FBTError, one_line
from ..models.census import of_model, take_census
from ..models.staged import StagedModel
from ..models.weightless import on_meta

Row = dict[str, Any]


def stage_rows(model: StagedModel, image_size: tuple[int, int]) -> list[Row]:
    """A row for each stage, and one for the head.

    Args:
        model: to look at.
        image_size: (height, width) in pixels.

    Returns:
        Rows of "part", "output", "family", "ends" (the module with its last weights, in the network's own order),
        "parameters" and "macs" (multiply-accumulate operations for one image).

    Raises:
        FBTError: if the model cannot take images of that size.
    """
    specs, macs = model.specs_at(image_size), model.macs_at(image_size)
    rows: list[Row] = [
        {"part": f"stage {i}", "output": str(spec), "family": spec.family} for i, spec in enumerate(specs, 1)
    ]
    logits = f"{model.num_classes} logits" if model.num_classes else "no classifier"
    rows.append({"part": "head", "output": f"{model.num_features} features, {logits}", "family": ""})
    names = {id(p): name for name, p in model.net.named_parameters()}
    for row, part, count in zip(rows, (*model.stages, model.head), macs, strict=True):
        own = {id(p): p.numel() for p in part.parameters()}
        last = next((name for i, name in reversed(names.items()) if i in own), "")
        row |= {"ends": last.rpartition(".")[0], "parameters": sum(own.values()), "macs": count}
    return rows


def splice_rows(
    student: StagedModel,
    teacher: StagedModel,
    strategy: FusionStrategy,
    image_size: tuple[int, int],
    switches: Iterable[int] = (1, 2),
) -> list[Row]:
    """A row for each splice of two models, by how often it switches.

    Args:
        student, teacher: the models.
        strategy: builds the junctions.
        image_size: (height, width) of the images that a model without an ``input_size`` is given.
        switches: how often a splice may switch models; with 1 among them "auto" is always there.

    Returns:
        Rows of "splice", "auto" (whether the config's "auto" is this one), "junctions" (their trained parameters),
        "macs" (what the fusion model computes for one image besides what student or teacher have computed anyway) and
        "refused" (why it does not fit, or "").
    """
    models = {"S": student, "T": teacher}
    sizes = {owner: model.input_size or image_size for owner, model in models.items()}
    counts = len(student.stages), len(teacher.stages)
    families = [of_model(spec.family for spec in model.specs_at(sizes[owner])) for owner, model in models.items()]
    usual = Splice.parse(AUTO, *counts, more_local(*families))
    rows = []
    for count in switches:
        found = list(enumerate_splices(*counts, count))
        if (
            count == len(usual.junctions) and usual not in found
        ):  # with unequal numbers of stages it may go back a little
            found.append(usual)
        for splice in found:
            row: Row = {"splice": str(splice), "auto": splice == usual, "junctions": None, "macs": None, "refused": ""}
            try:
                row |= _cost(splice, models, strategy, sizes)
            except FBTError as error:
                row["refused"] = one_line(error)
            except (RuntimeError, ValueError, IndexError) as error:
                row["refused"] = one_line(error)
            rows.append(row)
    return rows


def _cost(
    splice: Splice, models: dict[str, StagedModel], strategy: FusionStrategy, sizes: dict[str, tuple[int, int]]
) -> Row:
    specs = {owner: model.specs_at(sizes[owner]) for owner, model in models.items()}
    with on_meta():
        junctions = build_junctions(strategy, specs["S"], specs["T"], splice).to("meta")  # tokens are a model's own
    macs = 0
    for junction, piece in zip(splice.junctions, splice.pieces[1:], strict=True):
        module = junctions[junction.name].eval()
        arrives, _ = ends(junction, specs["S"], specs["T"])
        _, census = take_census(module, torch.empty(arrives.sizes(2), device="meta"), module.parameters())
        macs += census.macs // 2
        macs += sum(models[piece.owner].macs_at(sizes[piece.owner])[n - 1] for n in piece.stages)
    owner = splice.pieces[-1].owner
    macs += models[owner].macs_at(sizes[owner])[-1]
    return {"junctions": sum(p.numel() for p in junctions.parameters()), "macs": macs}
