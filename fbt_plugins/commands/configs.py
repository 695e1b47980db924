"""Lists the shipped configs, each by the name that other commands know it by."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ..config.locating import config_folder, first_line, shipped_configs
from .arguments import Parser, as_table

EXAMPLES = """\
examples:
  fbt configs
  fbt configs --json
  fbt train fbt_convnext_resmlp

A config of your own may begin with one of them: _base_ = ["FOLDER/fbt_convnext_resmlp.py"].
"""


def parse() -> Parser:
    parser = Parser("fbt configs", __doc__, EXAMPLES)
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    return parser


def main(argv: Sequence[str]) -> None:
    args = parse().parse_args(argv)
    shipped = shipped_configs()
    if args.json:
        rows = [{"name": n, "about": first_line(path), "path": str(path)} for n, path in shipped.items()]
        print(json.dumps(rows, indent=2))
        return
    print(as_table({name: first_line(path) for name, path in shipped.items()}))
    print(f"\nin {config_folder()}")
