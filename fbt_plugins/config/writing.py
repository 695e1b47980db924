"""Configs as files: complete, and the same when they are read again, here or elsewhere."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from mmengine.config import Config

from .options import OPTIONS


class _Readable(float):
    """A float that a Python file can say: mmengine writes ``inf`` and ``nan``, which no file knows."""

    def __repr__(self) -> str:
        return f"float('{float(self)}')"


def as_file(config: Mapping[str, Any] | Config, keep: Collection[str] = ()) -> str:
    """A run's config as the text of a Python file.

    How a run was started (``OPTIONS`` says what that is) is left out: folder, device and launcher are the next one's.

    Args:
        config: of a run.
        keep: options of a start that the file needs all the same.
    """
    contents = config.to_dict() if isinstance(config, Config) else dict(config)
    starts = {key for key, option in OPTIONS.items() if option.of_the_start} - set(keep)
    return Config(_readable({key: value for key, value in contents.items() if key not in starts})).pretty_text


def _readable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _readable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_readable(item) for item in value)
    return _Readable(value) if type(value) is float and not math.isfinite(value) else value
