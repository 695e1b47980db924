"""Where configs are: at a path, or among those that are shipped with the package, by name."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ConfigError, nearest, user_path

_PACKAGE = Path(__file__).parents[1]


def config_folder() -> Path:
    """The folder of the shipped configs: a clone's own, or in a wheel a folder of the package."""
    installed = _PACKAGE / "_configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def shipped_configs() -> dict[str, Path]:
    """The shipped configs by name, such as "search/one_shot"; those in ``_base_`` are pieces of them."""
    folder = config_folder()
    paths = (path for path in sorted(folder.rglob("*.py")) if "_base_" not in path.parts)
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}


def first_line(path: Path) -> str:
    """The first line of a Python file's docstring or comment: what the file is."""
    with path.open(encoding="utf-8") as file:
        return file.readline().strip().strip('"# ')


def find_config(given: str | Path) -> Path:
    """The file that a config argument means.

    Args:
        given: a path, which wins where there is such a file, or a shipped config's name: "search/one_shot",
            "search/one_shot.py" or "configs/search/one_shot.py".

    Raises:
        ConfigError: if it is neither.
    """
    if (path := user_path(given)).is_file():
        return path
    name, shipped = path.as_posix().removeprefix("configs/").removesuffix(".py"), shipped_configs()
    if name in shipped and not str(given).startswith((".", "~", "/")):  # those are paths, and no names
        return shipped[name]
    near = nearest(path.name, _beside(path), 0) or nearest(name, shipped, 0)
    raise ConfigError(f"config {str(given)!r}: no such file{near} (fbt configs lists the shipped ones)")


def _beside(path: Path) -> list[str]:
    """The Python files of a path's folder, or of this one where there is no such folder."""
    return [other.name for other in (path.parent if path.parent.is_dir() else Path()).glob("*.py")]


def typed_config(path: str | Path) -> str:
    """A config as one types it here: the path from here, or a shipped one's name where it lies elsewhere."""
    here = os.path.relpath(path)
    if not here.startswith(".."):
        return here
    file = Path(path).resolve()
    return next((name for name, shipped in shipped_configs().items() if shipped.resolve() == file), str(path))
