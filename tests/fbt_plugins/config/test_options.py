"""The table of run options, and the hash of a config, which reads it."""

from typing import Any

import pytest

from fbt_plugins.config.hashing import config_hash
from fbt_plugins.config.loading import complete
from fbt_plugins.config.options import OPTIONS
from fbt_plugins.engine.hooks.ema import EMAHook

CONFIG = complete(
    dict(
        model=dict(type="Distiller", student=dict(type="timm", name="resnet18")),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        train_dataloader=dict(batch_size=8, dataset=dict(type="ImageFolder", root="/data/images")),
        optim_wrapper=dict(optimizer=dict(type="AdamW", lr=0.001)),
    ),
    {},
)


def test_the_hash_of_a_config_never_changes() -> None:
    """Committed results are known by it: if this fails, give a new option no default, and change no old one's."""
    assert config_hash(CONFIG) == "c739b6457f13133f"


@pytest.mark.parametrize("key", OPTIONS)
def test_only_what_affects_results_is_in_the_hash(key: str) -> None:
    value: Any = {"deterministic": True} if key == "randomness" else "something"
    assert (config_hash({**CONFIG, key: value}) != config_hash(CONFIG)) == OPTIONS[key].affects_results


def test_the_seed_and_the_place_of_the_data_are_not_in_the_hash() -> None:
    loader = CONFIG["train_dataloader"]
    elsewhere = {**loader, "dataset": {**loader["dataset"], "root": "/elsewhere"}}
    assert config_hash({**CONFIG, "randomness": {"seed": 7}, "train_dataloader": elsewhere}) == config_hash(CONFIG)
    assert config_hash({**CONFIG, "train_dataloader": {**loader, "batch_size": 9}}) != config_hash(CONFIG)


def test_each_option_says_what_it_is_and_what_it_makes_is_there() -> None:
    for key, option in OPTIONS.items():
        assert option.about and "\n" not in option.about, key
        assert (option.makes is None) == (option.factory is None) and (option.makes is None or callable(option.factory))


def test_hooks_are_made_of_those_options_that_are_on() -> None:
    assert {key for key, option in OPTIONS.items() if option.hook({})} == {"teacher_cache", "ema"}
    hook = OPTIONS["ema"].hook({"decay": 0.5})
    assert isinstance(hook, EMAHook) and hook.decay == 0.5
    assert OPTIONS["ema"].hook(None) is None
