"""Trains a config: distillation, or one model alone where the config has no teacher."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from ..errors import ConfigError, typed
from .arguments import Parser

EXAMPLES = """\
examples:
  fbt train configs/fbt_convnext_resmlp.py
  fbt train configs/fbt_convnext_resmlp.py --check --data
  fbt train configs/fbt_convnext_resmlp.py --resume
  fbt train configs/fbt_convnext_resmlp.py --seed 1 --work-dir work_dirs/seed1
  fbt train configs/fbt_convnext_resmlp.py --cfg-options model.fusion.splice=S1-3+T4 train_cfg.max_epochs=3
  torchrun --nproc_per_node 2 --no-python fbt train configs/fbt_convnext_resmlp.py --launcher pytorch
  # a teacher and a student of a matrix: these need CIFAR-100, and download the teacher's first weights
  fbt train configs/teachers/cifar100.py --pair swin-t --method finetune
  fbt train configs/cifar100.py --pair swin-t_resnet18 --method fbt

A config is Python code and may name plugins, which are Python code too: run only what you trust.
"""


def parse() -> Parser:
    parser = Parser("fbt train", __doc__, EXAMPLES)
    parser.add_shared("config", "--pair", "--method", "--cfg-options", "--device", "--amp", "--compile")
    parser.add_argument(
        "--work-dir", help="folder of the run (default: work_dirs/NAME OF THE CONFIG[/PAIR/METHOD/seed_SEED])"
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        metavar="PATH",
        help="go on from PATH, or from the run's newest whole checkpoint; 'auto': from the start where there is none",
    )
    parser.add_argument("--seed", type=int, help="seed of everything random (default: the config's, else 0)")
    parser.add_argument(
        "--launcher", choices=("none", "pytorch", "slurm", "mpi"), default="none", help="who started the processes"
    )
    parser.add_argument("--check", action="store_true", help="only check the config and all shapes")
    parser.add_argument(
        "--data", action="store_true", help="with --check: open the data of all splits too, and read a few images"
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help="set by torch's launcher")
    return parser


def main(argv: Sequence[str]) -> None:
    parser = parse()
    args = parser.parse_args(argv)
    if args.data and not args.check:
        parser.error("--data goes with --check; a run opens all its data before it trains")
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    # Imported late: --help and usage errors must not wait for the engine.
    from ..config.loading import Arguments
    from ..console import say
    from ..engine.loaders import missing_data, open_splits
    from ..engine.plan import Plan

    given = ("work_dir", "launcher", "resume", "device", "seed", "amp", "compile")
    arguments = Arguments(**{name: getattr(args, name) for name in given}, command=command_line(argv))
    plan = Plan.of(args.config, args.cfg_options, args.pair, args.method, arguments)
    if not args.check:
        plan.run()
        return
    missing: list[str] = []
    if args.data:
        data = open_splits(plan.config, plan.distiller)
    elif missing := missing_data(plan.config):
        data = ["data     not here"]
    else:
        data = ["data     not opened: --check --data does"]
    for line in (f"{args.config}: nothing wrong{' but that data are missing' * bool(missing)}", *data, *plan.lines()):
        say(line)
    if missing:
        raise ConfigError([f"{args.config}: {line}" for line in missing])


def command_line(argv: Sequence[str]) -> str:
    """What makes this run again, from its start."""
    resume = argparse.ArgumentParser(add_help=False)
    resume.add_argument("--resume", nargs="?")
    return typed("fbt train", *resume.parse_known_args(argv)[1])
