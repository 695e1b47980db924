"""Chooses each method's best setting from a finished tuning matrix, for the configs of the study proper."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fbt_plugins.commands.arguments import Parser
from fbt_plugins.errors import FBTError, run

EXAMPLES = """\
example:
  python tools/compare.py configs/fashion_mnist_tuning.py --workers 2
  python tools/choose.py configs/fashion_mnist_tuning.py --out configs/_base_/fashion_mnist_tuned.json

Each "pair" of a tuning matrix is a setting. The table goes to the terminal, the choice to a file for a config's _base_.
"""


def parse() -> Parser:
    parser = Parser(prog="tools/choose.py", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("config", help="config file of the tuning matrix")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help="its trials.jsonl, or the folder that has it (default: work_dirs/compare/NAME)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file of what was chosen (default: none)")
    return parser


def main() -> None:
    args = parse().parse_args()
    from fbt_plugins import load_plugins
    from fbt_plugins.compare.tuning import as_base, as_table, choose
    from fbt_plugins.config.loading import complete, load_matrix
    from fbt_plugins.console import relative, say
    from fbt_plugins.files import write_atomic
    from fbt_plugins.report import read_trials, trials_file

    try:
        from fbt_plugins.config.hashing import config_hash
    except ModuleNotFoundError as error:
        raise FBTError(f"{error.name} is not installed: pip install 'fbt-plugins[search,report]'") from None

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


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))  # plugins beside the config's project
    run(main)
