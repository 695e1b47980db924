"""Runs a matrix (pairs x methods x seeds) as an Optuna study, and compares all that is finished."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import FBTError, repeated, typed, user_path
from .arguments import Parser, extras

EXAMPLES = """\
examples:
  # these need Fashion-MNIST: FASHION_MNIST=FOLDER before them says where it is
  fbt compare configs/fashion_mnist.py
  fbt compare configs/fashion_mnist.py --pairs convnext_resmlp --methods scratch kd t_s fbt --workers 2
  fbt compare configs/fashion_mnist.py --out docs/results/fashion_mnist   # goes on from what is there
  fbt compare configs/cifar100.py --storage postgresql+psycopg://USER@HOST/DATABASE   # CIFAR-100; on each machine

Runs that are finished (a line each of --results, or complete in the study) are not run again; those that failed or were
stopped are. Without anything left to run, only the report is written.
"""


def parse() -> Parser:
    parser = Parser("fbt compare", __doc__, EXAMPLES)
    parser.add_shared("config", "--cfg-options", "--device", "--workers", "--storage")
    parser.add_argument("--pairs", nargs="+", metavar="PAIR", help="some pairs only (default: all)")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="some methods only (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="other seeds than the config's")
    parser.add_argument(
        "--out", type=user_path, metavar="DIR", help="folder of the report (default: work_dirs/compare/NAME)"
    )
    parser.add_argument(
        "--results",
        type=user_path,
        metavar="FILE",
        help="trials.jsonl of finished runs, or a folder that has one (default: in --out, made if it is not there)",
    )
    return parser


def main(argv: Sequence[str]) -> int:
    parser = parse()
    args = parser.parse_args(argv)
    for option in ("pairs", "methods", "seeds"):
        if twice := repeated(getattr(args, option) or ()):
            parser.error(f"--{option}: {twice[0]} is there twice")
    from mmengine.config import Config

    with extras("search,report"):  # imported late: --help and usage errors must not wait for the engine
        import matplotlib  # noqa: F401
        import scipy  # noqa: F401

        from ..compare.live_table import Screen
        from ..compare.runs import Runs
        from ..config.hashing import config_hash
        from ..engine.check import check_cells
        from ..engine.loaders import open_all
        from ..jobs.study import FAILURES, Run, SharedStudy, complaint, hidden
    from .. import load_plugins
    from ..config.loading import complete, load_matrix
    from ..console import relative, say
    from ..files import check_out
    from ..report import TRIALS, best_of, compare, trials_file, write_report

    load_plugins()
    name, matrix = Path(args.config).stem, load_matrix(args.config)
    folder = Path("work_dirs") / "compare" / name
    out = args.out or folder
    check_out(out)
    results = trials_file(args.results) if args.results else out / TRIALS
    if not (args.out or args.results) and (kept := Path("docs") / "results" / name / TRIALS).is_file():
        say(f"{kept} has finished runs; to go on from them: --out {kept.parent}")
    hashes, configs = {}, {}
    cells = matrix.cells(args.pairs, args.methods)
    for cell in matrix.cells():
        try:
            configs[cell] = complete(matrix.cell(*cell), args.cfg_options or {})
            hashes[cell] = config_hash(configs[cell])
        except FBTError:  # an option that is for some methods only
            if cell in cells:
                raise
    seeds = {cell: args.seeds or matrix.seeds_of(cell[1]) for cell in cells}
    wanted = [
        Run(*cell, seed, hashes[cell])
        for seed in sorted({seed for own in seeds.values() for seed in own})
        for cell in cells
        if seed in seeds[cell]
    ]
    study = SharedStudy(name, args.storage or f"sqlite:///{folder / 'study.db'}", Run)
    train = [sys.executable, "-m", "fbt_plugins.commands", "train", args.config]
    train += ["--device", args.device] if args.device else []
    train += ["--cfg-options", *args.cfg_options_typed] if args.cfg_options else []
    runs = Runs(study, wanted, train, folder / "runs", results, args.workers)
    if others := [run for run in runs.done if hashes.get((run.pair, run.method), run.config) != run.config]:
        say(f"{len(others)} runs in {relative(results)} are of other configs than today's: they do not count")
    to_run = {f"{r.pair}/{r.method}": configs[r.pair, r.method] for r in wanted if r not in runs.done}
    of_all = {"work_dir": str(folder), **({"device": args.device} if args.device else {})}
    check_cells({cell: Config({**config, **of_all}) for cell, config in to_run.items()})
    open_all(to_run)
    try:
        stopped = runs.work(Screen(runs))
    except FAILURES as error:  # runs are told to save when this process ends, and are free when their heartbeats stop
        raise FBTError(f"--storage: {complaint(error)}; the same command goes on") from error

    # All that is finished of the matrix, not only what this command asked for.
    done = [trial for run, trial in runs.done.items() if hashes.get((run.pair, run.method)) == run.config]
    missing = [str(run) for run in wanted if run not in runs.done]
    order = [(pair, method) for pair in matrix.pairs for method in matrix.methods if matrix.suits(pair, method)]
    for method, by_seed in matrix.best_of.items():
        done += best_of(done, method, matrix.methods[method].get("about", ""), by_seed)
    published = {pair: overrides.get("reference", {}) for pair, overrides in matrix.pairs.items()}
    comparison = compare(name, done, order, missing, matrix.controls, published)
    paths = write_report(out, comparison, hidden(typed("fbt compare", *argv)))
    say(f"report   {', '.join(relative(path) for path in paths)}")
    if stopped:
        say(f"stopped  {len(wanted) - len(missing)} of {len(wanted)} runs are done; the same command goes on")
        return 128 + stopped
    for failed, reason in runs.failed.items():
        print(f"failed   {failed}: {reason}", file=sys.stderr)
    return 1 if runs.failed else 0
