"""Lists what plugins registered, and which plugins failed to load."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tabulate import tabulate

from .arguments import Parser

EXAMPLES = """\
examples:
  fbt plugins
  fbt plugins --json
"""


def parse() -> Parser:
    parser = Parser("fbt plugins", __doc__, EXAMPLES)
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    return parser


def main(argv: Sequence[str]) -> int:
    args = parse().parse_args(argv)
    from .. import load_plugins

    plugins = load_plugins()
    rows = []
    for registry in plugins.registries:
        for name in sorted(registry.module_dict):
            plugin = registry.owners[name]
            rows.append(
                {
                    "kind": registry.name,
                    "name": name,
                    "plugin": plugin.name,
                    "distribution": plugin.distribution,
                    "version": plugin.version,
                }
            )
    if args.json:
        print(json.dumps({"registered": rows, "failed": [vars(f) for f in plugins.failures]}, indent=2))
        return 0
    print(tabulate(rows, headers="keys"))
    for failure in plugins.failures:
        print(f"failed: {failure}")
    return 0
