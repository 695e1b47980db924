"""Imports run one way: plugins import the core, and the core knows no plugin."""

import ast
from pathlib import Path

import pytest

import fbt_plugins

CORE = Path(fbt_plugins.__file__).parent
# A room may import those to its right in this row, and itself.
FLOORS = [
    {"search", "report"},
    {"engine"},
    {"distiller", "data"},
    {"assembly"},
    {"testing", "pytest_plugin", "coverage"},
    {"public"},
    {"inspection"},
    {"edge", "gate", "fusion", "declaration", "weights", "layout"},
    {"splice", "staged", "proof", "family", "knowledge", "precision", "schedule", "idle"},
    {"plugins", "hookspecs", "cli"},
    {"registry"},
    {"errors"},
]


def imported(path: Path) -> set[str]:
    """Dotted names that a module imports, relative ones resolved."""
    package = [*path.relative_to(CORE.parent).parts[:-1]]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {module} if node.module else {f"{module}.{alias.name}" for alias in node.names}
    return names


APART = {"report": {"engine", "distiller"}}
"""What a room may not import although it lies below."""

MODULES = sorted(CORE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(CORE)))
def test_the_core_imports_no_plugin(path: Path) -> None:
    assert not {n for n in imported(path) if n.split(".")[0].startswith("fbt_") and n.split(".")[0] != "fbt_plugins"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(CORE)))
def test_rooms_import_only_what_lies_below(path: Path) -> None:
    def floor(room: str) -> int | None:
        return next((i for i, rooms in enumerate(FLOORS) if room in rooms), None)

    own = floor(path.relative_to(CORE).parts[0].removesuffix(".py"))
    if own is None:  # __init__
        return
    for name in imported(path):
        parts = name.split(".")
        other = floor(parts[1]) if parts[0] == "fbt_plugins" and len(parts) > 1 else None
        assert other is None or other >= own, f"{path.name} imports {name}"
        apart = APART.get(path.relative_to(CORE).parts[0], set())
        assert not apart & set(parts[1:2]), f"{path.name} imports {name}"
