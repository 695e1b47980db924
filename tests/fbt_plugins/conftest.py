from pathlib import Path

import pytest
from runs import Build, builder, run

from fbt_plugins.engine.runner import DistillRunner


@pytest.fixture
def config(tmp_path: Path) -> Build:
    """Builds the config of a run in a folder of its own."""
    return builder(tmp_path)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> DistillRunner:
    """The miniature run as it is without any options, finished: for all tests, so not to be changed."""
    return run(builder(tmp_path_factory.mktemp("whole"))())
