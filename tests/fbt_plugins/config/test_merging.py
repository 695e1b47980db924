import pytest

from fbt_plugins.config.merging import merge, merge_options
from fbt_plugins.errors import ConfigError


def test_a_new_type_does_not_inherit_the_old_ones_arguments() -> None:
    base = dict(loss=dict(type="OFALoss", gamma=1.2), lr=1)
    assert merge(base, dict(loss=dict(type="KDLoss", temperature=4))) == dict(
        loss=dict(type="KDLoss", temperature=4), lr=1
    )
    assert merge(base, dict(loss=dict(gamma=1.5))) == dict(loss=dict(type="OFALoss", gamma=1.5), lr=1)
    assert merge(base, dict(loss=dict(type="OFALoss"))) == base


def test_a_new_model_name_keeps_the_type_only() -> None:
    base = dict(student=dict(type="timm", name="resnet18", num_classes=10, drop_rate=0.1))
    child = dict(student=dict(name="vit_tiny_patch16_224", num_classes=10))
    assert merge(base, child)["student"] == dict(type="timm", name="vit_tiny_patch16_224", num_classes=10)


def test_delete_replaces_and_none_can_be_filled() -> None:
    assert merge(dict(a=dict(b=1, c=2)), dict(a=dict(_delete_=True, b=3))) == dict(a=dict(b=3))
    assert merge(dict(a=None), dict(a=dict(b=3))) == dict(a=dict(b=3))
    with pytest.raises(ConfigError, match="a is a dict here and 3 in the base"):
        merge(dict(a=3), dict(a=dict(b=3)))


def test_options_change_values_types_and_items_of_lists() -> None:
    config = dict(model=dict(loss=dict(type="OFALoss", gamma=1.0), fusion=None), steps=[dict(end=1), dict(end=2)])
    options = {
        "model.loss.temperature": 2,
        "model.loss.type": "KDLoss",
        "steps.1.end": 9,
        "model.fusion.splice": "auto",
    }
    changed = merge_options(config, options)
    assert changed["model"] == dict(loss=dict(type="KDLoss", temperature=2), fusion=dict(splice="auto"))
    assert changed["steps"] == [dict(end=1), dict(end=9)]
    assert config["model"]["loss"] == dict(type="OFALoss", gamma=1.0)


def test_all_misplaced_options_are_reported_together() -> None:
    config = dict(model=dict(teacher=dict(name="t"), loss=dict(a=1)), schedule=[dict(end=1), dict(end=2)])
    wrong = {
        "modle.teacher.name": "there is no modle in the config; did you mean 'model'?",
        "model.teachr.name": "there is no model.teachr in the config; did you mean 'teacher'?",
        "model.teacher.name.x": "model.teacher.name is 't', it has nothing below it",
        "schedule.7.end": "schedule is a list of 2; no item '7'",
    }
    with pytest.raises(ConfigError) as error:
        merge_options(config, dict.fromkeys(wrong, 3))
    assert error.value.problems == [f"--cfg-options {option}: {line}" for option, line in wrong.items()]
