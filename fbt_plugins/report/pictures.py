"""Pictures of one run, as PNG: its curves, and which classes it takes for which."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from .figures import COLORS, STYLES, subplots

LARGEST = 30
"""Classes of a confusion matrix up to which cells and classes are named."""

_OTHERS = ("#7c3aed", "#15803d", "#b45309", "#be185d", "#0e7490", "#4d7c0f")


def training_curves(records: Sequence[Mapping[str, Any]]) -> bytes | None:
    """Losses, one metric of each model on the validation set, and the learning rate, over the iterations.

    The metric is top-1; where there is none, the first that the student has.

    Args:
        records: lines of a run's ``metrics.jsonl``.

    Returns:
        None where there is nothing to show.
    """
    losses = _series(records, "train/")
    rate = losses.pop("lr", None)
    for name in ("images_per_second", "grad_norm"):
        losses.pop(name, None)
    found = _series(records, "val/")
    measured = [name.removeprefix("student_") for name in found if name.startswith("student_")]
    metric = "top1" if "top1" in measured or not measured else measured[0]
    metrics = {name.removesuffix(f"_{metric}"): v for name, v in found.items() if name.endswith(f"_{metric}")}
    panels = [
        (title, lines)
        for title, lines in (
            ("losses, as they are added", losses),
            (f"validation {'top-1' if metric == 'top1' else metric} %", metrics),
            ("learning rate", {"lr": rate} if rate else {}),
        )
        if lines
    ]
    if not panels:
        return None
    figure, axes = subplots(1, len(panels), (4.4 * len(panels), 4.0))
    for ax, (title, lines) in zip(axes, panels, strict=True):
        number = 0
        for name, points in lines.items():
            color, style = COLORS.get(name, "black"), STYLES.get(name, "-")
            if name not in COLORS and name not in ("loss", "lr"):
                turn, place = divmod(number, len(_OTHERS))
                color, style, number = _OTHERS[place], "-:"[turn % 2], number + 1
            marker = "." if len(points) < 30 else ""
            ax.plot(*zip(*points, strict=True), style, marker=marker, color=color, linewidth=1.3, label=name)
        ax.set_title(title, fontsize=9)
        ax.set_xlabel("iteration")
        if lines is not metrics and all(value > 0 for points in lines.values() for _, value in points):
            ax.set_yscale("log" if lines is losses else "linear")
            ax.yaxis.set_major_formatter("{x:g}")
        if len(lines) > 1:
            ax.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    return _png(figure)


def _series(records: Sequence[Mapping[str, Any]], start: str) -> dict[str, list[tuple[float, float]]]:
    """Values by name, each with its iteration, of the keys that begin so."""
    found: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        for key, value in record.items():
            if key.startswith(start) and isinstance(value, int | float):
                found.setdefault(key.removeprefix(start), []).append((record["iter"], value))
    return found


def confusion_matrix(counts: Sequence[Sequence[int]], classes: Sequence[str], title: str) -> bytes:
    """A heat map: a row per true class, a column per class that was said, each row in percent of its images.

    Args:
        counts: images by true class and said class.
        classes: their names.
        title: above it.
    """
    count = len(classes)
    size = min(2.4 + 0.42 * count, 14.0) if count <= LARGEST else 9.0
    figure, (ax,) = subplots(1, 1, (size + 0.8, size))
    shares = [[100 * value / (sum(row) or 1) for value in row] for row in counts]
    shown = ax.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    if count <= LARGEST:
        for y, row in enumerate(shares):
            for x, share in enumerate(row):
                if counts[y][x]:
                    color = "white" if share > 60 else "#1a1a1a"
                    ax.text(x, y, f"{share:.0f}", ha="center", va="center", fontsize=7, color=color)
        ax.set_xticks(range(count), classes, rotation=90, fontsize=8)
        ax.set_yticks(range(count), classes, fontsize=8)
    ax.set_xlabel("said")
    ax.set_ylabel("true")
    ax.set_title(title, fontsize=9)
    ax.grid(False)
    ax.tick_params(length=0)
    figure.colorbar(shown, ax=ax, shrink=0.8, label="% of the class's images")
    return _png(figure)


def _png(figure: Any) -> bytes:
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)  # names are no formulas
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120, metadata={"Software": None})
    return picture.getvalue()
