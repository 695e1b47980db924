"""Times a config's training step, part by part, beside a bare loop in plain PyTorch."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..errors import user_path
from .arguments import Parser

EXAMPLES = """\
examples:
  fbt benchmark configs/fbt_convnext_resmlp.py
  fbt benchmark configs/tiny.py --after 100000 --json tiny.json
  fbt benchmark configs/fbt_convnext_resmlp.py --amp --cfg-options train_dataloader.in_memory=True

The bare loop does the same arithmetic. "engine" is what the run's step takes more; "whole" is one step and its data.
Nothing is kept but the table and what --json writes; the weights of the run are not.
"""


def parse() -> Parser:
    parser = Parser("fbt benchmark", __doc__, EXAMPLES)
    parser.add_shared("config", "--pair", "--method", "--cfg-options", "--device", "--amp", "--compile")
    parser.add_argument("--rounds", type=int, default=20, help="how often each kind of step is timed (default: 20)")
    parser.add_argument(
        "--after", type=int, default=0, metavar="N", help="iterations that the hooks have behind them (default: 0)"
    )
    parser.add_argument("--json", type=user_path, metavar="FILE", help="write the figures to a file as well")
    parser.add_argument("--threads", type=int, help="of torch on the CPU (default: torch's own)")
    return parser


def main(argv: Sequence[str]) -> None:
    parser = parse()
    args = parser.parse_args(argv)
    if args.rounds < 2 or args.after < 0:
        parser.error("--rounds is 2 or more, --after 0 or more")
    # Imported late: --help and usage errors must not wait for the engine.
    import torch

    from ..config.loading import Arguments
    from ..engine.benchmark import benchmark
    from ..engine.plan import Plan
    from ..files import check_file, write_atomic

    if args.json:
        check_file(args.json, "--json")
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        work_dir = str(Path(folder) / "run")
        arguments = Arguments(work_dir=work_dir, device=args.device, amp=args.amp, compile=args.compile)
        plan = Plan.of(args.config, args.cfg_options, args.pair, args.method, arguments)
        found = benchmark(plan.config, args.rounds, args.after)
    print(table(found))
    if args.json:
        write_atomic(args.json, json.dumps(found, indent=2) + "\n")


def table(found: dict[str, Any]) -> str:
    """The figures as people read them."""
    whole = found["milliseconds"]["engine step"]["median"]
    rows = [
        (name, f"{v['median']:.3f}", f"{v['low']:.3f} to {v['high']:.3f}", f"{100 * v['median'] / whole:.1f}")
        for name, v in found["milliseconds"].items()
    ]
    text = tabulate(rows, ("part", "ms (median)", "quartiles", "% of a step"), stralign="right", disable_numparse=True)
    lines = [
        text,
        f"engine     {found['engine_microseconds']:.0f} us more than the bare step ({found['engine_percent']:.2f} %), "
        "95 % interval of the median {:.0f} to {:.0f} us".format(*found["engine_microseconds_95"]),
        f"throughput {found['images_per_second']:.0f} images/s in batches of {found['batch_size']}, data included",
        f"memory     {found['peak_memory_mb']:.0f} MB at most",
    ]
    if fusion := found.get("fusion"):
        own, cost = fusion["own_milliseconds"]["median"], fusion["cost_milliseconds"]["median"]
        ratio = f"{cost:.3f} ms, {fusion['ratio']:.3f} times what its junctions and tail take alone ({own:.3f} ms)"
        lines.append(f"fusion     forward and backward cost {ratio}")
    lines.append(f"on {found['device']}, {found['precision']}, torch {found['versions']['torch']}")
    return "\n".join(lines)
