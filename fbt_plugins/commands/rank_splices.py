"""Compares rankings of splices, by one-shot search and cheap predictors, with trainings of each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean

from ..errors import FBTError, user_path
from .arguments import Parser, extras

RANDOM = (1, 2, 3)
"""Trainings of a random search beside the rankings."""

EXAMPLES = """\
examples:
  fbt compare configs/search/splices.py --out docs/results/splices --workers 2     # the trainings, of Fashion-MNIST
  fbt search configs/search/study.py --pair convnext_resmlp --method fbt           # the one-shot search
  fbt rank-splices docs/results/splices --one-shot work_dirs/search/study.convnext_resmlp/search.json

Writes splice_ranking.md, splice_ranking.json and splice_ranking.svg into the folder of the trainings' results.
"""


def parse() -> Parser:
    parser = Parser("fbt rank-splices", __doc__, EXAMPLES)
    parser.add_argument(
        "results", type=user_path, help="folder (or trials.jsonl) of a comparison whose methods are named after splices"
    )
    parser.add_argument(
        "--one-shot",
        type=user_path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="search.json of one-shot searches, or a .jsonl of several",
    )
    parser.add_argument("--without-fusion", default="t_s", metavar="METHOD", help="whose CKA predicts (default: t_s)")
    return parser


def main(argv: Sequence[str]) -> None:
    args = parse().parse_args(argv)
    from tabulate import tabulate

    from ..console import relative, say
    from ..distill.splice import Splice
    from ..errors import ConfigError
    from ..files import write_atomic

    with extras("report"):
        import matplotlib  # noqa: F401
        import scipy  # noqa: F401
    from ..report.figures import rankings
    from ..report.results import read_trials, trials_file
    from ..report.splice_ranking import as_json, first_epoch, junction_cka, random_search, rank_correlations

    results = trials_file(args.results)
    found = read_trials(results, say)
    splices: dict[str, Splice] = {}
    for trial in found:
        with suppress(ConfigError):  # methods that are not named after a splice
            splice = Splice.parse(trial.method)
            if str(splice) != trial.method:  # by role: what it is, only the run with its models knows
                if not trial.splices:
                    why = f"{trial.name} does not say which splice it is; name the method after that, as in {splice}"
                    raise FBTError(f"{results}: {why}")
                splice = Splice.parse(next(iter(trial.splices.values()))[0])
            splices.setdefault(trial.method, splice)
    trials = [trial for trial in found if trial.method in splices]
    if not trials:
        what = f"its {len(found)} runs are of other methods" if found else "it has no finished run"
        raise FBTError(f"{args.results}: {what}; needed are trainings of methods that are splices, such as 'S1-3+T4'")
    if len(pairs := {trial.pair for trial in trials}) > 1:
        raise FBTError(f"{args.results}: trainings of several pairs ({', '.join(sorted(pairs))}); keep those of one")
    if len({(trial.method, trial.seed) for trial in trials}) < len(trials):
        raise FBTError(f"{results}: trainings of several configs with one name and seed; keep the lines of one of them")
    one_shots = [table for path in args.one_shot for table in _one_shots(path)]
    cheap = {"F after its first validation": first_epoch(trials)}
    plain = sorted((t for t in found if t.method == args.without_fusion), key=lambda trial: trial.seed)
    if mapped := [trial for trial in plain if trial.cka]:
        sides = {
            name: [(f"{j.giver}{j.last}", f"{j.taker}{j.first - 1}") for j in splice.junctions]
            for name, splice in splices.items()
        }
        cheap[f"CKA at the junctions, of {args.without_fusion}"] = junction_cka(mapped[0], sides)
    cheap = {name: table for name, table in cheap.items() if table}
    predictors = {f"one shot {i + 1}": table for i, table in enumerate(one_shots)}
    if len(one_shots) > 1:
        common = [splice for splice in one_shots[0] if all(splice in table for table in one_shots)]
        predictors["one shot, mean"] = {s: fmean(table[s] for table in one_shots) for s in common}
    predictors |= cheap | {"fewer junctions": {name: -len(splice.junctions) for name, splice in splices.items()}}
    try:
        rows = rank_correlations(trials, predictors)
    except ValueError as error:
        raise FBTError(f"{args.results}: {error}") from error
    head = ("ranking", "splices", "tau with one seed", "95 %", "tau with the mean", "top-1 of its first, %")
    cells = [
        (
            r.predictor,
            r.splices,
            f"{r.one_seed:+.2f}",
            f"[{r.low:+.2f}, {r.high:+.2f}]",
            "–" if r.mean is None else f"{r.mean:+.2f}",
            "–" if r.best is None else f"{r.best:.2f}",
        )
        for r in rows
    ]
    table = tabulate(cells, head, tablefmt="github", disable_numparse=True)
    expected = {size: fmean(drawn.values()) for size in RANDOM if (drawn := random_search(trials, size))}
    lines = [table, "", *(f"Random search of {size} trainings: {top1:.2f} %." for size, top1 in expected.items())]
    print("\n".join(lines))
    write_atomic(results.with_name("splice_ranking.md"), "\n".join(lines) + "\n")
    contents = {"rankings": as_json(rows), "random_search": expected}
    write_atomic(results.with_name("splice_ranking.json"), json.dumps(contents, indent=1) + "\n")
    picture = rankings(
        {name: [trial.student for trial in trials if trial.method == name] for name in splices},
        ({"one shot: F's top-1 %": one_shots} if one_shots else {}) | {name: [table] for name, table in cheap.items()},
        fmean(trial.student for trial in plain) if plain else None,
    )
    write_atomic(results.with_name("splice_ranking.svg"), picture)
    kinds = ("md", "json", "svg")
    say(f"written  {', '.join(relative(results.with_name(f'splice_ranking.{kind}')) for kind in kinds)}")


def _one_shots(path: Path) -> list[dict[str, float]]:
    """The rankings in a file: one of a search.json, or one in each line of a file of several (.jsonl)."""
    try:
        text = path.read_text(encoding="utf-8")
        searches = map(json.loads, text.splitlines()) if path.suffix == ".jsonl" else [json.loads(text)]
        return [dict(search["one_shot"]["top1"]) for search in searches]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise FBTError(f"--one-shot {path}: not the search.json of a one-shot search ({error})") from error
