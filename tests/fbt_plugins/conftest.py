from pathlib import Path

import pytest
from runs import Build, builder


@pytest.fixture
def config(tmp_path: Path) -> Build:
    """Builds the config of a run in a folder of its own."""
    return builder(tmp_path)
