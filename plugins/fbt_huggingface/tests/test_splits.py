"""Every family is cut exactly, where the field cuts it."""

import copy
from typing import Any

import pytest
import torch
from conftest import SMALL, build, size_of
from fbt_huggingface.families import FAMILIES
from fbt_huggingface.sources import model_class

from fbt_plugins import ARCHITECTURES, ConfigError, FBTError, StagedModel


def meta(**config: Any) -> Any:
    with torch.device("meta"):
        return ARCHITECTURES.build(dict(type="huggingface", num_classes=1000) | config)


def test_every_family_is_tested() -> None:
    assert {config["name"] for config in SMALL.values()} == FAMILIES.keys()


@pytest.mark.parametrize("name", SMALL)
def test_stages_and_head_are_the_model(name: str) -> None:
    model = build(name)
    proof = model.verify(size_of(SMALL[name]))
    assert proof.batch_sizes == (2, 3)
    assert proof.parameters == len(list(model.net.parameters()))
    unused = ("mask_token", "vision_model.post_layernorm", "vision_model.head")  # CLIP's logits don't see its last norm
    of_siglip = name == "siglip"  # whose last norm is in front of the mean
    unreached = [
        n
        for n, _ in model.net.named_parameters()
        if n.endswith("mask_token") or (n.startswith(unused) and not (of_siglip and "post_layernorm" in n))
    ]
    assert proof.gradients == proof.parameters - len(unreached)
    assert len(model.stages) == 4 and model.num_classes == 7


@pytest.mark.parametrize("name", SMALL)
def test_the_model_is_transformers_own(name: str) -> None:
    model = build(name).eval()
    own = type(model.net)(model.net.config).eval()
    assert (
        type(own).__module__.startswith("transformers.models.")
        and type(own).__name__ == FAMILIES[SMALL[name]["name"]].classifier
    )
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.net.load_state_dict(own.state_dict())  # the same names
    size = size_of(SMALL[name])
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = getattr(own(images), FAMILIES[SMALL[name]["name"]].answer)
        assert torch.equal(model.net(images), expected) and torch.equal(model(images), expected)


# (layout, channels, grid) after each stage, at 224 pixels, as the papers have them; all of transformers' own defaults.
FIELD = {
    "convnext": ("cnn", "NCHW", [(96, 56), (192, 28), (384, 14), (768, 7)]),
    "mobilenet_v1": ("cnn", "NCHW", [(128, 56), (256, 28), (512, 14), (1024, 7)]),
    "mobilenet_v2": ("cnn", "NCHW", [(24, 56), (32, 28), (96, 14), (1280, 7)]),
    "poolformer": ("cnn", "NCHW", [(64, 56), (128, 28), (320, 14), (512, 7)]),
    "regnet": ("cnn", "NCHW", [(128, 56), (192, 28), (512, 14), (1088, 7)]),
    "resnet": ("cnn", "NCHW", [(256, 56), (512, 28), (1024, 14), (2048, 7)]),
    "swin": ("attention", "NHWC", [(96, 56), (192, 28), (384, 14), (768, 7)]),
    "swinv2": ("attention", "NHWC", [(96, 56), (192, 28), (384, 14), (768, 7)]),
    "beit": ("attention", "NLC", [(768, 14)] * 4),
    "deit": ("attention", "NLC", [(768, 14)] * 4),
    "dinov2": ("attention", "NLC", [(768, 16)] * 4),  # patches of 14 pixels
    "vit": ("attention", "NLC", [(768, 14)] * 4),
}


@pytest.mark.parametrize("name", FIELD)
def test_stages_are_those_of_the_fields_tables(name: str) -> None:
    family, layout, sizes = FIELD[name]
    model = meta(name=name)
    assert model.family == family
    assert [(s.layout, s.channels, s.grid) for s in model.specs] == [(layout, c, (g, g)) for c, g in sizes]


def test_twelve_blocks_are_cut_two_two_six_two() -> None:
    for name in ("vit", "dinov2", "beit"):
        stages = meta(name=name).stages
        assert [sum(s.startswith("blocks") for s in stage.steps) for stage in stages] == [2, 2, 6, 2]


def test_a_swin_stage_begins_with_its_downsampling() -> None:
    model = build("swin")
    assert type(model.stages[1].stages_1_0.part).__name__ == "SwinPatchMerging"
    assert [len(stage.steps) for stage in model.stages] == [3, 3, 3, 2]


def test_stages_can_be_chosen() -> None:
    assert [len(s.steps) for s in build(stages=2).stages] == [4, 2]
    model = build("resnet", stages=["stages.1.0", "stages.2", "stages.3"])
    assert len(model.stages) == 3 and model.verify(64)
    with pytest.raises(ConfigError, match=r"no unit 'blocks\.9'.*did you mean 'blocks\.[0-9]'"):
        build(stages=["blocks.1", "blocks.9"])


def test_features_are_the_input_of_the_last_linear_layer() -> None:
    for name in ("vit", "dinov2", "beit"):
        model, seen = build(name).eval(), []
        model.net.classifier.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        images = torch.rand(2, 3, 32, 32)
        model.net(images)
        assert torch.equal(model.knowledge(images).features, seen[0])
    assert build("dinov2").num_features == 2 * 24  # class token and mean of the patches
    assert build("deit_with_teacher").num_features == 24  # the mean of the two tokens


def test_features_can_be_the_mean_over_all_positions() -> None:
    model = build("vit", feature="avgpool").eval()
    images = torch.rand(2, 3, 32, 32)
    tokens = model.net.vit(images).last_hidden_state
    assert torch.equal(model.knowledge(images).features, tokens[:, 1:].mean(1))


def test_prefix_tokens_start_from_the_models_own() -> None:
    spec = build("dinov2_with_registers").specs[0]
    tokens = build("dinov2_with_registers").net.dinov2_with_registers.embeddings
    assert spec.prefix_tokens == 5 and torch.equal(
        spec.prefix, torch.cat([tokens.cls_token[0], tokens.register_tokens[0]])
    )
    assert build("deit").specs[0].prefix_tokens == 2 and build("ijepa").specs[0].prefix_tokens == 0


def test_a_copy_and_another_type_of_number_are_still_the_model() -> None:
    for name in ("vit", "swin", "resnet"):
        model = copy.deepcopy(build(name)).double()
        assert all(p.dtype == torch.float64 for stage in model.stages for p in stage.parameters())
        images = torch.rand(2, 3, size_of(SMALL[name]), size_of(SMALL[name]), dtype=torch.float64)
        assert torch.equal(model.eval()(images), model.net(images))


def test_beit_knows_its_grid() -> None:
    with torch.device("meta"):  # what transformers caches there must not be of this device
        assert build("beit").specs[0].grid == (4, 4)
    wide = build("beit", image_size=[32, 48])
    assert wide.specs[0].grid == (4, 6) and wide.verify()
    assert build("beit").verify((48, 48))  # another square
    for size, reason in (((32, 48), "24 patches are neither"), ((16, 64), "2x8 patches is neither")):
        with pytest.raises(FBTError, match=f"{reason} a square nor"):
            build("beit").specs_at(size)


def test_images_of_a_size_that_a_model_refuses_are_one_line() -> None:
    with pytest.raises(FBTError, match=r"vit cannot take images of 64x64 pixels .*set input_size") as caught:
        build("vit").specs_at((64, 64))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["vit", "resnet", "deit_with_teacher"])
def test_a_network_in_hand_is_cut_alike_and_stays_as_it_is(name: str) -> None:
    size = size_of(SMALL[name])
    expected = build(name, input_size=size)
    network = model_class(expected.name)(expected.net.config)
    network.load_state_dict(expected.net.state_dict())
    model = StagedModel.of(network, image_size=size)
    model.verify()
    images = torch.rand(2, 3, size, size)
    assert (model.specs, model.mean, model.name) == (expected.specs, expected.mean, expected.name)
    assert torch.equal(model.eval()(images), network(images).logits)  # it gives what it gave before


@pytest.mark.parametrize("name", ["dinov2", "deit_with_teacher", "siglip", "swiftformer"])
def test_an_encoder_is_the_classifier_without_its_last_layer(name: str) -> None:
    """Its features are what the classifier would be given, and its stages are cut in the same places."""
    encoder, classifier = build(name, num_classes=0).eval(), build(name).eval()
    size = size_of(SMALL[name])
    assert encoder.verify(size) and encoder.num_classes == 0
    assert encoder.specs == classifier.specs
    encoder.net.load_state_dict({k: v for k, v in classifier.net.state_dict().items() if k in encoder.net.state_dict()})
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), classifier.knowledge(images).features)
        assert encoder.knowledge(images).logits is None
