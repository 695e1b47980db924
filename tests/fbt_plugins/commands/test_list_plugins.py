"""What is installed, and whose it is, for people and programs."""

import json
from collections.abc import Callable


def test_lists_names_with_plugin_and_version(tool: Callable) -> None:
    code, table, err = tool("list_plugins")
    assert code == 0 and not err and "InfoNCELoss" in table and "fbt-plugins" in table


def test_all_of_ours_loads(tool: Callable) -> None:
    code, text, err = tool("list_plugins", "--json")
    found = json.loads(text)
    rows = {(row["kind"], row["name"], row["plugin"]) for row in found["registered"]}
    assert code == 0 and not err
    assert {
        ("architecture", "timm", "architectures"),
        ("fusion", "L2GFusion", "fusions"),
        ("loss", "OFALoss", "losses"),
    } <= rows
    assert not [row for row in found["failed"] if row["distribution"] == "fbt-plugins"]
