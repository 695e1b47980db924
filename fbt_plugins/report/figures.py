"""Pictures as SVG text: differences with their intervals, and how T, F and S went."""

from __future__ import annotations

import io
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from .comparison import BASELINES, Pair
from .trials import Trial

COLORS = {"student": "#0b6fb8", "fusion": "#c2410c", "teacher": "#555555"}
_RC: Any = {"svg.fonttype": "none", "svg.hashsalt": "fbt", "font.family": "sans-serif", "font.size": 9}


def differences(pair: Pair) -> str | None:
    """Each method's differences to the baselines, with their intervals; None where there are none."""
    panels = [(b, [(r.method, d) for r in pair.rows if (d := r.differences.get(b))]) for b in BASELINES]
    panels = [(baseline, rows) for baseline, rows in panels if rows]
    if not panels:
        return None
    most = max(len(rows) for _, rows in panels)
    figure, axes = _subplots(1, len(panels), (4.4 * len(panels), 0.9 + 0.24 * most))
    for ax, (baseline, rows) in zip(axes, panels, strict=True):
        for y, (_, value) in enumerate(reversed(rows)):
            color = COLORS["student"] if value.is_clear else "#888888"
            if value.low is not None:
                ax.plot([value.low, value.high], [y, y], color=color, linewidth=1.6)
            ax.plot(value.mean, y, "o", color=color, markersize=4)
        ax.axvline(0, color="black", linewidth=0.8)
        ax.set_yticks(range(len(rows)), [method for method, _ in reversed(rows)])
        ax.set_xlabel(f"difference to {BASELINES[baseline]}, points of top-1")
    return _svg(figure)


def curves(pair: Pair, columns: int = 4) -> str | None:
    """Validation accuracy of T, F and S of each method, the mean over its seeds and their range."""
    groups = {row.method: [t for t in pair.trials if t.method == row.method and t.curve] for row in pair.rows}
    groups = {method: trials for method, trials in groups.items() if trials}
    if not groups:
        return None
    columns = min(columns, len(groups))
    rows = -(-len(groups) // columns)
    figure, axes = _subplots(rows, columns, (2.6 * columns, 2.0 * rows + 0.3), sharex=True, sharey=True)
    for ax, (method, trials) in zip(axes, groups.items(), strict=False):
        for model, color in COLORS.items():
            epochs, values = _aligned(trials, model)
            if not epochs:
                continue
            means = [fmean(column) for column in values]
            ax.plot(epochs, means, color=color, linestyle="--" if model == "teacher" else "-", linewidth=1.3)
            ax.fill_between(epochs, list(map(min, values)), list(map(max, values)), color=color, alpha=0.2, linewidth=0)
        ax.set_title(method, fontsize=9)
    for ax in axes[len(groups) :]:
        ax.set_visible(False)
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel("validation top-1 %", fontsize=9)
    lines = [
        axes[0].plot([], [], color=color, label=f"{model[0].upper()} ({model})")[0] for model, color in COLORS.items()
    ]
    figure.legend(handles=lines, loc="outside upper right", ncols=3, frameon=False)
    return _svg(figure)


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

    text = io.StringIO()
    with rc_context(_RC):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()
