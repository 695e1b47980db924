"""What a search leaves behind: its trials as JSON and as a table, plots, and the best as configs to be trained."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from tabulate import tabulate

from ..config.options import as_file
from ..files import write_atomic
from .search import Search, Tried
from .space import Fusions, Space


def write_results(search: Search, out: Path, command: str) -> list[Path]:
    """Writes ``search.json``, ``search.md``, plots, and a config of each of the best trials.

    Args:
        search: with at least one trial that is complete.
        out: folder.
        command: that was given.

    Returns:
        The files.
    """
    best = search.best()
    configs = [out / ("best.py" if i == 0 else f"front_{tried.number:04d}.py") for i, tried in enumerate(best)]
    for old in out.glob("front_*.py"):
        if old not in configs:
            old.unlink()
    for tried, path in zip(best, configs, strict=True):
        words = f"# Trial {tried.number} of a search ({command}).\n"
        write_atomic(path, words + as_file(search.config_of(tried.options, test=True)))
    trials = sorted(search.tried.values(), key=lambda tried: tried.number)
    contents = {
        "command": command,
        "objectives": dict(zip(search.settings.objectives, search.settings.directions, strict=True)),
        "sampler": search.settings.sampler,
        "pruner": search.settings.pruner,
        "seed": search.settings.seed,
        "best": [tried.number for tried in best],
        "trials": [asdict(tried) for tried in trials],
        "failed": {str(slot): reason for slot, reason in search.failed.items()},
        **search.about(),
    }
    paths = [out / "search.json", out / "search.md", *configs]
    write_atomic(paths[0], json.dumps(contents, indent=1) + "\n")
    plots = list(_plots(search, out))
    text = [f"# {out.name}", "", f"`{command}`", "", *table(search, len(trials)), "", *search.lines()]
    text += [line for path in plots for line in (f"![{path.stem}]({path.name})", "")]
    write_atomic(paths[1], "\n".join(text))
    return paths + plots


def table(search: Search, limit: int) -> list[str]:
    """A Markdown table of the trials, best first; pruned ones are last."""
    return tabulate(list(rows(search, limit)), headers="keys", tablefmt="github", floatfmt=".2f").splitlines()


def rows(search: Search, limit: int) -> Iterator[Mapping[str, Any]]:
    """The best trials, each a row for people: number, what it was given, figures."""
    names = search.settings.objectives
    sign = -1 if search.settings.directions[0] == "maximize" else 1
    best = search.best()

    def rank(tried: Tried) -> tuple[bool, bool, float]:
        return tried not in best, tried.state != "complete", sign * tried.figures.get(names[0], float("nan"))

    for tried in sorted(search.tried.values(), key=rank)[:limit]:
        figures = {name: tried.figures.get(name) for name in names}
        state = "best" if tried in best else "" if tried.epoch is None else f"pruned, epoch {tried.epoch}"
        yield {"trial": tried.number, "tried": in_words(tried.options, search.space), **figures, "": state}


def in_words(options: Mapping[str, Any], space: Space) -> str:
    """ "T1-3+S4 (auto) L2GFusion, logit_loss.gamma=1.2"."""
    parts = []
    for key, value in options.items():
        if isinstance(value, Mapping) and "splice" in value:
            rest = [f"{k}={v}" for k, v in value.items() if k not in ("type", "splice")]
            parameter = space.parameters.get(key)
            splice = parameter.marked(value["splice"]) if isinstance(parameter, Fusions) else value["splice"]
            parts.append(" ".join([splice, value["type"], *rest]))
        else:
            shown = f"{value:.4g}" if isinstance(value, float) else json.dumps(value) if value is None else str(value)
            parts.append(f"{key.removeprefix('model.')}={shown}")
    return ", ".join(parts)


def _plots(search: Search, out: Path) -> Iterator[Path]:
    """Optuna's own; those that these trials do not allow are left out."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from optuna.visualization import matplotlib as plots

    study, names = search.study.study, list(search.settings.objectives)
    complete = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
    varied = {name for t in complete for name in t.params if len({u.params.get(name) for u in complete}) > 1}
    first: dict[str, Any] = {"target_name": names[0]}
    low = first  # for importances, whose evaluator takes low values for good ones
    if len(names) > 1:
        sign = -1 if search.settings.directions[0] == "maximize" else 1
        first, low = first | {"target": lambda trial: trial.values[0]}, first | {"target": lambda t: sign * t.values[0]}
    drawn: dict[str, Any] = {"history": lambda: plots.plot_optimization_history(study, **first)}
    if len(complete) > 3 and varied:
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        drawn["importance"] = lambda: plots.plot_param_importances(study, evaluator=evaluator, **low)
        drawn["slices"] = lambda: plots.plot_slice(study, params=_in_all(complete, varied) or None, **first)
    if 1 < len(names) < 4:
        drawn["front"] = lambda: plots.plot_pareto_front(study, target_names=names)
    plt.rcParams["text.parse_math"] = False  # names are no formulas
    for name, draw in drawn.items():
        plt.close("all")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                draw()
        except (ValueError, RuntimeError):  # Optuna's way to say that there is nothing to be drawn
            continue
        path = out / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        plt.gcf().set_size_inches(10, 6)
        plt.savefig(path, dpi=110, bbox_inches="tight")
        yield path
    plt.close("all")


def _in_all(trials: Sequence[optuna.trial.FrozenTrial], names: set[str]) -> list[str]:
    return sorted(name for name in names if all(name in trial.params for trial in trials))
