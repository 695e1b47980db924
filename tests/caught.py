"""What a check for authors says about a part that is wrong."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest


def says(reason: str, check: Callable[..., None], *args: Any, **options: Any) -> None:
    """The check fails for this reason, on one line."""
    with warnings.catch_warnings(), pytest.raises(AssertionError) as found:
        warnings.simplefilter("ignore")
        check(*args, **options)
    assert reason in str(found.value) and "\n" not in str(found.value), found.value
