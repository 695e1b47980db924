"""Pictures as SVG text: differences with their intervals; how T, F and S went, how alike they are; rankings."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from math import isnan
from statistics import fmean
from typing import Any

from .cells import NONE
from .comparison import Pair, measured
from .results import Trial

COLORS = {"student": "#0b6fb8", "fusion": "#c2410c", "teacher": "#555555"}
STYLES = {"student": "-", "fusion": "-", "teacher": "--"}
_RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fbt",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,
}


def differences(pair: Pair, controls: Mapping[str, str]) -> str | None:
    """Each method's differences to the controls, with their intervals; None where there are none."""
    panels = [
        (about, [(r.method, d) for r in pair.rows if (d := r.differences.get(c))]) for c, about in controls.items()
    ]
    panels = [(about, rows) for about, rows in panels if rows]
    if not panels:
        return None
    most = max(len(rows) for _, rows in panels)
    figure, axes = _subplots(1, len(panels), (4.4 * len(panels), 0.7 + 0.22 * most))
    for ax, (about, rows) in zip(axes, panels, strict=True):
        for y, (_, value) in enumerate(reversed(rows)):
            color = COLORS["student"] if value.is_clear else "#888888"
            if value.low is not None:
                ax.plot([value.low, value.high], [y, y], color=color, linewidth=1.6)
            ax.plot(value.mean, y, "o", color=color, markersize=4)
        ax.axvline(0, color="black", linewidth=0.8)
        ax.set_yticks(range(len(rows)), [method for method, _ in reversed(rows)])
        ax.set_ylim(-0.6, most - 0.4)
        ax.set_xlabel(f"difference to {about}, points of {measured(pair.trials)} %")
    return _svg(figure)


def curves(pair: Pair, columns: int = 6) -> str | None:
    """Validation accuracy of T, F and S of each method, the mean over its seeds and their range.

    The axis is that of all students and teachers; a fusion model that stays below it is named in a line.
    """
    groups = {row.method: [t for t in pair.trials if t.method == row.method and t.curve] for row in pair.rows}
    groups = {method: trials for method, trials in groups.items() if trials}
    if not groups:
        return None
    columns = min(columns, len(groups))
    rows = -(-len(groups) // columns)
    figure, axes = _subplots(rows, columns, (2.05 * columns, 1.65 * rows + 0.4), sharex=True, sharey=True)
    shown = [v for g in groups.values() for model in ("student", "teacher") for c in _aligned(g, model)[1] for v in c]
    low, high = min(shown, default=0.0), max(shown, default=100.0)
    margin = 0.05 * (high - low) or 1.0
    axes[0].set_ylim(low - margin, high + margin)
    for ax, (method, trials) in zip(axes, groups.items(), strict=False):
        for model, color in COLORS.items():
            epochs, values = _aligned(trials, model)
            if not epochs:
                continue
            means = [fmean(column) for column in values]
            ax.plot(epochs, means, color=color, linestyle=STYLES[model], linewidth=1.3)
            ax.fill_between(epochs, list(map(min, values)), list(map(max, values)), color=color, alpha=0.2, linewidth=0)
            if max(means) < low:
                text = f"{model[0].upper()} below: {means[-1]:.1f} %"
                ax.text(0.97, 0.05, text, color=color, fontsize=7.5, ha="right", transform=ax.transAxes)
        ax.set_title(method, fontsize=9)
        ax.xaxis.get_major_locator().set_params(integer=True)
    for ax in axes[len(groups) :]:
        ax.set_visible(False)
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel(f"validation {measured(pair.trials)} %", fontsize=9)
    lines = [
        axes[0].plot([], [], STYLES[model], color=color, label=f"{model[0].upper()} ({model})")[0]
        for model, color in COLORS.items()
    ]
    figure.legend(handles=lines, loc="outside upper left", ncols=3, frameon=False)
    return _svg(figure)


def similarities(pair: Pair, of: str, columns: int = 6) -> str | None:
    """Heat maps of CKA, one per method: how alike each stage of one model is to each of another.

    Args:
        pair: whose methods are shown, each with its first seed's map.
        of: two of "T", "F" and "S", such as "TF".
        columns: maps side by side.
    """
    panels = []
    for row in pair.rows:
        for found in (row.cka or {}).get("maps", {}).values():
            fusions = [model for model in found["models"] if model not in ("teacher", "student")]
            kind = "".join("F" if model in fusions else model[0].upper() for model in found["models"])
            if kind == of:
                panels.append((", ".join([row.method, *(name for name in fusions if name != "fusion")]), found))
    if not panels:
        return None
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    height = max(len(found["rows"]) for _, found in panels)
    figure, axes = _subplots(rows, columns, (1.9 * columns, (0.32 * height + 0.75) * rows))
    for ax, (title, found) in zip(axes, panels, strict=False):
        values = [[float("nan") if v is None else v for v in line] for line in found["values"]]
        ax.imshow(values, cmap="Blues", vmin=0, vmax=1, origin="lower", aspect="auto")
        for y, line in enumerate(values):
            for x, value in enumerate(line):
                color = "white" if value > 0.6 else "#1a1a1a"
                ax.text(
                    x, y, NONE if isnan(value) else f"{value:.2f}", ha="center", va="center", fontsize=7.5, color=color
                )
        for axis, names in ((ax.xaxis, found["columns"]), (ax.yaxis, found["rows"])):
            axis.set_ticks(range(len(names)), [_short(name) for name in names], fontsize=8)
        ax.set_title(title, fontsize=9)
        ax.tick_params(length=0)
        ax.grid(False)
        ax.spines[:].set_visible(False)
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    return _svg(figure)


def rankings(
    trained: Mapping[str, Sequence[float]],
    predicted: Mapping[str, Sequence[Mapping[str, float]]],
    control: float | None,
) -> str:
    """A row per splice, the best by its mean on top: its students, and beside them what rankings have of it.

    Args:
        trained: test top-1 of each splice's students, seed by seed.
        predicted: by ranking, the values that it has of each splice, once or several times.
        control: top-1 without a fusion model.
    """
    order = sorted(trained, key=lambda splice: fmean(trained[splice]))
    figure, axes = _subplots(
        1, 1 + len(predicted), (2.3 * (1 + len(predicted)) + 1, 0.9 + 0.22 * len(order)), sharey=True
    )
    panels = {"students trained by themselves, top-1 %": [trained]} | {
        name: [{splice: [value] for splice, value in table.items()} for table in tables]
        for name, tables in predicted.items()
    }
    for ax, (name, tables) in zip(axes, panels.items(), strict=True):
        color = COLORS["student" if ax is axes[0] else "fusion"]
        for y, splice in enumerate(order):
            values = [value for table in tables for value in table.get(splice, ())]
            if values:
                ax.plot(values, [y] * len(values), "o", color=color, markersize=3.5, alpha=0.45, markeredgewidth=0)
                ax.plot(fmean(values), y, "|", color=color, markersize=10, markeredgewidth=2)
        ax.set_xlabel(name)
    if control is not None:
        axes[0].axvline(control, color=COLORS["teacher"], linewidth=1, linestyle="--")
        axes[0].text(control, len(order) - 0.4, "without F", color=COLORS["teacher"], fontsize=7.5, ha="center")
    axes[0].set_yticks(range(len(order)), order)
    return _svg(figure)


def _short(stage: str) -> str:
    """ "→T4" for the output of a junction, "S3_T4"."""
    return "→" + stage.partition("_")[2] if "_" in stage else stage


def _aligned(trials: Sequence[Trial], model: str) -> tuple[list[float], list[list[float]]]:
    """Epochs at which every seed was validated, and the values of all seeds there."""
    tables = [{point["epoch"]: point[model] for point in trial.curve if model in point} for trial in trials]
    epochs = sorted(set.intersection(*map(set, tables)))
    return epochs, [[table[epoch] for table in tables] for epoch in epochs]


def _subplots(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Any, list[Any]]:
    """Without pyplot, which would look for a display and keep every figure."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_RC):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **options)
        for ax in axes.flat:
            ax.grid(True, color="#e5e5e5", linewidth=0.6)
            ax.set_axisbelow(True)
            ax.spines[["top", "right"]].set_visible(False)
    return figure, list(axes.flat)


def _svg(figure: Any) -> str:
    from matplotlib import rc_context
    from matplotlib.text import Text

    text = io.StringIO()
    with rc_context(_RC):
        for shown in figure.findobj(Text):
            shown.set_parse_math(False)  # names are no formulas
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()
