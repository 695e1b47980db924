import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_lists_names_with_plugin_and_version() -> None:
    tool = [sys.executable, "tools/list_plugins.py"]
    table = subprocess.run(tool, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "InfoNCELoss" in table and "fbt-plugins" in table
    found = json.loads(subprocess.run([*tool, "--json"], cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    rows = [(row["kind"], row["name"], row["plugin"]) for row in found["registered"]]
    assert ("architecture", "timm", "architectures") in rows
    assert found["failed"] == []
