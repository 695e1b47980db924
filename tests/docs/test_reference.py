"""The reference pages say what the code says."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """What the generator makes of the code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])
        made: dict[str, str] = runpy.run_path(str(REFERENCE / "make.py"))["pages"]()
    return made


@pytest.mark.parametrize("name", ["config.md", "commands.md"])
def test_a_page_is_what_its_generator_makes(name: str, pages: dict[str, str]) -> None:
    assert (REFERENCE / name).read_text(encoding="utf-8") == pages[name], "run: python docs/reference/make.py"
