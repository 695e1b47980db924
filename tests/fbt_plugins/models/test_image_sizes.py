"""What a size of images is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fbt_plugins.models.image_sizes import pixels


@pytest.mark.parametrize("size", [32, np.int64(32), (32, 32), [np.int32(32), 32], np.array([32, 32])])
def test_sizes_are_plain_numbers_of_pixels(size: Any) -> None:
    assert pixels(size) == (32, 32) and {type(side) for side in pixels(size)} == {int}


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "32", "ab", None, (1, 2, 3), (1,), (8, 0), (8, 2.5), (8, "8")])
def test_what_is_no_size_is_a_value_error(size: Any) -> None:
    with pytest.raises(ValueError, match="an image size is a number of pixels or"):
        pixels(size)
