import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path


def test_lists_names_with_plugin_and_version(tool: Callable) -> None:
    code, table, err = tool("list_plugins")
    assert code == 0 and not err and "InfoNCELoss" in table and "fbt-plugins" in table


def test_all_that_is_installed_loads() -> None:
    # A process of its own: other tests register broken plugins in this one.
    command = [sys.executable, "tools/list_plugins.py", "--json"]
    root = Path(__file__).parents[3]
    found = json.loads(subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout)
    rows = [(row["kind"], row["name"], row["plugin"]) for row in found["registered"]]
    assert ("architecture", "timm", "architectures") in rows
    assert found["failed"] == []
