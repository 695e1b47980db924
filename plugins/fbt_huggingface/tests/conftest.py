"""Plugins, loaded once."""

from typing import Any

import pytest
import torch

from fbt_plugins import load_plugins

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def plugins() -> Any:
    """The process's plugins."""
    return load_plugins()
