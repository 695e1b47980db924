"""Cuts that are declared: a line of data for a network."""

import dataclasses

import pytest
from conftest import CNN, RESMLP
from toy import DECLARED, Toy

from fbt_plugins import ARCHITECTURES
from fbt_plugins.errors import ConfigError
from fbt_plugins.models.staged import StageSpec


def test_a_third_party_network_is_one_line_of_data() -> None:
    model = DECLARED.cut(Toy(), image_size=(8, 8))
    proof = model.verify()
    assert (proof.parameters, proof.buffers) == (len(list(model.net.parameters())), 12)
    assert model.specs == [StageSpec("NCHW", 4, (4, 4))] * 4
    assert (model.num_features, model.num_classes, model.family) == (4, 3, "cnn")


def test_stages_can_be_a_number_or_names() -> None:
    assert len(ARCHITECTURES.build(dict(RESMLP, num_blocks=6, stages=6)).stages) == 6
    assert len(ARCHITECTURES.build(dict(RESMLP, num_blocks=2, stages=2)).stages) == 2
    with pytest.raises(ConfigError, match="2 blocks cannot make 4 stages; set stages to at most 2"):
        ARCHITECTURES.build(dict(RESMLP, num_blocks=2))
    named = ARCHITECTURES.build(dict(CNN, stages=["layer1.0", "layer2", "layer4"]))
    assert [len(s.steps) for s in named.stages] == [5, 3, 4]
    named.verify(32)
    with pytest.raises(ConfigError, match="did you mean 'layer3'"):
        ARCHITECTURES.build(dict(CNN, stages=["layer1", "layre3", "layer4"]))
    with pytest.raises(ConfigError, match="must end the row"):
        ARCHITECTURES.build(dict(CNN, stages=["layer1", "layer2"]))
    with pytest.raises(ConfigError, match="cut into 2 to 8 stages"):
        ARCHITECTURES.build(dict(CNN, stages=9))


def test_a_cut_that_names_what_is_not_there_is_one_clear_line() -> None:
    for changes, line in (
        (dict(stem="conv gian"), "Toy has no module or method 'gian'; did you mean 'gain'?"),
        (dict(units="block.*"), "Toy has no module 'block'; did you mean 'blocks"),
        (dict(cuts="blocks.0 blocks.7"), "cuts: no unit 'blocks.7' to cut behind"),
        (dict(cuts="blocks.2 blocks.1 blocks.3"), "cuts: 'blocks.1' does not come after the cut before it"),
        (dict(cuts="blocks.0 blocks.2"), "must end the row; add 'blocks.3'"),
        (dict(units="blocks.{0,1,2,5}"), "Toy has no module or method 'blocks.5'; did you mean 'blocks"),
        (dict(head="pool fd"), "Toy has no module or method 'fd'; known: "),
    ):
        with pytest.raises(ConfigError) as refused:
            dataclasses.replace(DECLARED, **changes).cut(Toy(), image_size=(8, 8))
        assert line in str(refused.value), refused.value


def test_what_a_cut_is_told_is_held_against_a_staged_model() -> None:
    with pytest.raises(ConfigError, match="no argument 'image_sise'; did you mean 'image_size"):
        DECLARED.cut(Toy(), image_sise=8)
