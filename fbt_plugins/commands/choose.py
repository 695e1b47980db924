"""Chooses each method's best setting from a finished tuning matrix, for the configs of a study."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..errors import user_path
from .arguments import Parser

EXAMPLES = """\
example:
  fbt compare configs/fashion_mnist_tuning.py --workers 2     # the runs, of Fashion-MNIST
  fbt choose configs/fashion_mnist_tuning.py --out configs/_base_/fashion_mnist_tuned.json

Each "pair" of a tuning matrix is a setting. The table goes to the terminal, the choice to a file for a config's _base_.
"""


def parse() -> Parser:
    parser = Parser("fbt choose", __doc__, EXAMPLES)
    parser.add_shared("config")
    parser.add_argument(
        "--results",
        type=user_path,
        metavar="FILE",
        help="its trials.jsonl, or the folder that has it (default: work_dirs/compare/NAME)",
    )
    parser.add_argument("--out", type=user_path, metavar="FILE", help="JSON file of what was chosen (default: none)")
    return parser


def main(argv: Sequence[str]) -> None:
    args = parse().parse_args(argv)
    from .. import load_plugins
    from ..compare.tuning import as_base, as_table, choose
    from ..config.hashing import config_hash
    from ..config.loading import complete, load_matrix
    from ..console import relative, say
    from ..files import check_file, write_atomic
    from ..report import read_trials, trials_file

    if args.out:
        check_file(args.out, "--out")
    load_plugins()
    matrix = load_matrix(args.config)
    results = trials_file(args.results or Path("work_dirs") / "compare" / Path(args.config).stem)
    hashes = {cell: config_hash(complete(matrix.cell(*cell), {})) for cell in matrix.cells()}
    trials = [trial for trial in read_trials(results, say) if hashes.get((trial.pair, trial.method)) == trial.config]
    choices = choose(matrix, trials)
    print("\n".join(as_table(choices)))
    if args.out:
        write_atomic(args.out, json.dumps(as_base(choices), indent=1) + "\n")
        say(f"chosen   {relative(args.out)}")
