"""Folders of images, and a network of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from photos import NETWORK, Fill
from PIL import Image

from fbt_plugins import load_plugins


@pytest.fixture(scope="module", autouse=True)
def plugins() -> None:
    load_plugins()


@pytest.fixture(scope="module")
def image() -> bytes:
    """A PNG of 20x16 pixels."""
    from io import BytesIO

    buffer = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 20, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def fill(tmp_path: Path, image: bytes) -> Fill:
    """Makes a folder of images from how many there are in each place."""

    def make(places: Mapping[str, int], name: str = "photos") -> Path:
        for place, count in places.items():
            (tmp_path / name / place).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                (tmp_path / name / place / f"{number:02}.png").write_bytes(image)
        return tmp_path / name

    return make


@pytest.fixture
def network(tmp_path: Path) -> str:
    """A network of one's own, in a file that is on no path of modules."""
    (tmp_path / "my_net.py").write_text(NETWORK)
    return f"{tmp_path / 'my_net.py'}:make"
