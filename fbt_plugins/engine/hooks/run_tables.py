"""What a run shows on the terminal: a header, lines, warnings, the final table. Only the first process speaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.dist import is_main_process
from rich.table import Table

from ...config.options import WithoutTeacher
from ...console import console, count, describe_device, millions, relative, say, warn
from ...distill.edge import STUDENT
from ...distill.fusion import BORROWED
from ..device import slowdown
from ..loaders import NO_LABELS, describe_labels
from ..metrics import Measure
from ..optim.schedules import unlike_training
from ..optim.wrapper import PRECISIONS
from ..training_run import TrainingRun

TOLERABLE = 2.0
"""How many times longer than in fp32 a matrix product may take on a CPU before a run says so."""


def header(runner: TrainingRun) -> None:
    """Config, models, parameters trained and frozen, splice, device and data, before the first step."""
    if not is_main_process():
        return
    distiller = runner.distiller
    table = Table(box=None, pad_edge=False)
    for column in ("", "model", "family", "parameters", "trained", "input"):
        table.add_column(column, justify="right" if column in ("parameters", "trained") else "left")
    families = distiller.families  # model.family is of its own image size
    for role, model in distiller.models.items():
        size = model.input_size or distiller.image_size
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        row = (role, model.name, families[role], millions(count(model)), millions(trained) if trained else "frozen")
        table.add_row(*row, f"{size[0]}x{size[1]}")
    for name, fusion in distiller.fusions.items():
        trained = sum(p.numel() for p in fusion.parameters())
        whose = "shared" if fusion.tail == BORROWED else fusion.tail
        table.add_row(name, fusion.title, "", whose, f"+{millions(trained)}", "")
    own = sum(p.numel() for edge in distiller.edges.values() for p in edge.parameters())
    if own:
        table.add_row("losses", "projectors and temperatures", "", "", f"+{millions(own)}", "")
    console.print(table)
    for line in distiller.splices_in_words():
        say(f"splice  {line}")
    for role, model in distiller.models.items():
        if runner.cfg.model[role].get("head") == "new":
            say(f"head    {role} {model.name}: a new one of {model.num_classes} classes, not that of its weights")
    say(f"config  {relative(runner.cfg.filename)}" if runner.cfg.filename else "config  (built in Python)")
    dataset = runner.train_dataloader.dataset
    held = f", {len(runner.val_dataloader.dataset):,} for validation" if runner.val_loop is not None else ""
    name = dataset.metainfo.get("name", type(dataset).__name__)
    labels = describe_labels(dataset)
    images = f"{len(dataset):,} images " + ("without labels" if labels == NO_LABELS else f"of {labels}")
    say(f"data    {name}: {images}{held}")
    say(f"device  {describe_device(runner.device)}, seed {runner.seed}")
    if runner.rate_scale != 1:
        rate, base = runner.cfg.optim_wrapper.optimizer.lr, runner.cfg.auto_scale_lr.base_batch_size
        say(
            f"rate    {rate:g} is for a total batch of {base:,}; scaled to {rate * runner.rate_scale:g} for "
            f"{runner.total_batch:,} (--cfg-options auto_scale_lr.enable=False keeps it)"
        )
    for line in unlike_training(runner.cfg.get("param_scheduler"), runner.cfg.train_cfg):
        say(f"rate    {line}")
    precision = runner.cfg.optim_wrapper.get("precision", "fp32")
    if (slower := slowdown(PRECISIONS[precision], runner.device)) > TOLERABLE:
        warn(
            f"{precision} takes {slower:.0f} times as long as fp32 on this CPU, which has no instructions for it",
            "--cfg-options optim_wrapper.precision=fp32",
        )
    if (runner.cfg.get("default_hooks") or {}).get("summary", {}) is None:
        say("summary none: with default_hooks.summary=None the student is neither tested nor written to a file")
    say(f"folder  {relative(runner.work_dir)}")


def result_table(
    rows: Sequence[Mapping[str, Any]],
    measured: Sequence[Measure],
    split: str,
    alone: WithoutTeacher | None = None,
) -> None:
    """What was measured (top-1 for example), parameters and time of each model, and of the student alone."""
    if not is_main_process():
        return
    table = Table(title=f"Result ({split})", title_justify="left")
    table.add_column("model")
    for column in (*(f"{measure.title} %" for measure in measured), "parameters", "ms / image"):
        table.add_column(column, justify="right")
    if alone is not None:
        student = next(row for row in rows if row["role"] == STUDENT)
        same = {key: student[key] for key in ("parameters", "ms")}
        rows = [*rows, {"role": "student without a teacher", "top1": alone.top1, **same}]
    for row in rows:
        figures = [row.get(measure.key) for measure in measured]
        cells = ["–" if figure is None else f"{figure:.2f}" for figure in figures]
        name = f"{row['role']} ({row['name']})" if "name" in row else row["role"]
        table.add_row(name, *cells, millions(row["parameters"]), f"{row['ms']:.3f}")
    console.print(table)
