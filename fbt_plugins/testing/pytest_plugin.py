"""The pytest plugin: fixtures for the tests of plugins.

pytest imports this module in every run on a machine that has us, so it imports nothing of ours until a test asks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ..registry.loading import Plugins


@pytest.fixture
def check_architecture() -> Callable[..., None]:
    """:func:`fbt_plugins.testing.checks.check_architecture`."""
    from .checks import check_architecture

    return check_architecture


@pytest.fixture
def check_fusion() -> Callable[..., None]:
    """:func:`fbt_plugins.testing.checks.check_fusion`."""
    from .checks import check_fusion

    return check_fusion


@pytest.fixture
def check_loss() -> Callable[..., None]:
    """:func:`fbt_plugins.testing.checks.check_loss`."""
    from .checks import check_loss

    return check_loss


@pytest.fixture
def isolated_plugins() -> Plugins:
    """A plugin manager with empty registries of its own: ``isolated_plugins.load_module("my_parts")`` fills them."""
    from .checks import isolated_plugins

    return isolated_plugins()
