"""Imports run one way: down through the rooms, in no circle; and plugins see public names alone."""

import ast
from pathlib import Path

import fbt_plugins
from fbt_plugins import authoring

CORE = Path(fbt_plugins.__file__).parent
PLUGINS = CORE.parent / "plugins"
FLOORS = [
    {"commands"},
    {"compare", "search"},
    {"jobs"},
    {"engine"},
    {"analysis", "config", "testing"},
    {"distill"},
    {"models", "data"},
    {"registry"},
    {"console", "files", "report"},
    {"errors", "randomness"},
]
"""Rooms by floor, the highest first. A room may import itself and all floors below; files may speak on the console."""

MODULES = {
    ".".join(p.relative_to(CORE.parent).with_suffix("").parts).removesuffix(".__init__"): p for p in CORE.rglob("*.py")
}


def imported(path: Path, package: str) -> dict[str, set[str]]:
    """What a file imports: dotted modules, relative ones resolved, and the names that it takes from each."""
    found: dict[str, set[str]] = {}
    above = package.split(".") if package else []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.setdefault(alias.name, set())
        elif isinstance(node, ast.ImportFrom):
            base = above[: len(above) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                found.setdefault(inner if inner in MODULES else module, set()).add(alias.name)
    return found


IMPORTS = {
    name: imported(path, name if path.name == "__init__.py" else name.rpartition(".")[0])
    for name, path in MODULES.items()
}


def room(module: str) -> str:
    """The room (or ground file) of a module of ours; "" of anything else, and of the public face."""
    parts = module.split(".")
    return parts[1] if parts[0] == "fbt_plugins" and len(parts) > 1 else ""


def floor(module: str) -> int | None:
    """The floor of a module's room; None of the public face and of anything else."""
    return next((i for i, rooms in enumerate(FLOORS) if room(module) in rooms), None)


def test_rooms_import_only_what_lies_below_and_the_core_knows_no_plugin() -> None:
    wrong = []
    for name, targets in IMPORTS.items():
        for target in targets:
            here, there = floor(name), floor(target)
            if target.split(".")[0] in {p.name for p in PLUGINS.iterdir()}:
                wrong.append(f"{name} imports the plugin {target}")
            if here is None or there is None or room(name) == room(target):
                continue
            same = here == there and (room(name), room(target)) != ("files", "console")
            if there < here or same or (room(name) == "report" and room(target) != "errors"):
                wrong.append(f"{name} imports {target}")
    assert not wrong


def test_every_room_has_a_floor() -> None:
    rooms = {room(name) for name in MODULES} - {"", "authoring"}
    assert rooms == set().union(*FLOORS)


def test_no_circle() -> None:
    left = {name: set(targets) & (MODULES.keys() - {name, "fbt_plugins"}) for name, targets in IMPORTS.items()}
    while free := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"these import each other, or what does: {sorted(left)}"


def test_plugins_import_public_names_only() -> None:
    public = {"fbt_plugins": set(fbt_plugins.__all__), "fbt_plugins.authoring": set(authoring.__all__)}
    wrong = [
        f"{path.relative_to(PLUGINS)}: {', '.join(sorted(names - public.get(module, set()))) or module} of {module}"
        for path in PLUGINS.rglob("*.py")
        if "tests" not in path.parts
        for module, names in imported(path, "").items()
        if module.split(".")[0] == "fbt_plugins" and (module not in public or names - public[module])
    ]
    assert not wrong


def test_what_is_public_is_there() -> None:
    for module in (fbt_plugins, authoring):
        for name in module.__all__:
            assert getattr(module, name) is not None
