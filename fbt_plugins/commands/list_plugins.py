"""Lists what plugins registered, and which plugins failed to load."""

from __future__ import annotations

import json

from tabulate import tabulate

from fbt_plugins.commands.arguments import Parser
from fbt_plugins.errors import run

EXAMPLES = """\
examples:
  python tools/list_plugins.py
  python tools/list_plugins.py --json
"""


def main() -> int:
    parser = Parser(prog="tools/list_plugins.py", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    args = parser.parse_args()
    from fbt_plugins import load_plugins

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


if __name__ == "__main__":
    run(main)
