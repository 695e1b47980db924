"""Methods without what does not go, and numbers that cannot be."""

from __future__ import annotations

import pytest

from fbt_plugins import ConfigError
from fbt_plugins.config.loading import shipped_methods
from fbt_plugins.engine.one_line.recipe import Choices, method


def test_a_method_leaves_out_what_does_not_go() -> None:
    whole = method("fbt", labels=True, logits=True)
    assert whole.model["logit_loss"]["type"] == "OFALoss" and not whole.left_out
    part = method("fbt", labels=False, logits=False)
    assert part.model["logit_loss"] is None and part.model["task_loss"] is None and "OFALoss" in part.left_out
    assert part.model["feature_loss"] == whole.model["feature_loss"]
    with pytest.raises(ConfigError, match=r"--method kd compares logits alone, and the images have none; .*fbt"):
        method("kd", labels=False, logits=False)
    with pytest.raises(ConfigError, match="--method scratch needs labels"):
        method("scratch", labels=False, logits=False)
    with pytest.raises(ConfigError, match="did you mean 'rsd'"):
        method("rds", labels=True, logits=True)
    assert {name for name in shipped_methods()[0] if method(name, labels=True, logits=True)} == set(
        shipped_methods()[0]
    )


def test_wrong_numbers_have_a_line_each() -> None:
    with pytest.raises(ConfigError) as found:
        Choices(epochs=0, batch_size=1, workers=-1, lr=0.0)
    assert [line.split()[0] for line in found.value.problems] == ["--epochs", "--batch-size", "--workers", "--lr"]


def test_a_method_in_other_letters_is_suggested() -> None:
    with pytest.raises(ConfigError, match=r"--method FBT: there is no such method; did you mean 'fbt'\?$"):
        method("FBT", labels=True, logits=True)
