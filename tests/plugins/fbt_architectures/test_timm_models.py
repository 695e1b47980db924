"""Every declared family is cut exactly, where the field cuts it."""

from __future__ import annotations

from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import CNN, DEIT, SWIN
from torch import nn

from fbt_plugins import ARCHITECTURES
from fbt_plugins.engine.finished.student import save_student
from fbt_plugins.errors import ConfigError, FBTError, UnknownNameError
from fbt_plugins.models.weightless import on_meta

_RESNET = dict(layers=(1, 1, 1, 1), channels=(8, 16, 24, 32))
_CONVNEXT = dict(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))
_VIT = dict(img_size=32, depth=4, embed_dim=48, num_heads=3)
SMALL: dict[str, tuple[dict[str, Any], int]] = {
    "resnet18": (dict(channels=(8, 16, 24, 32)), 32),
    "resnet50d": (dict(_RESNET, drop_rate=0.2, drop_path_rate=0.1), 32),
    "seresnet50": (_RESNET, 32),
    "resnetblur50": (_RESNET, 64),
    "mobilenetv2_100": (dict(drop_rate=0.2, drop_path_rate=0.1), 32),
    "mobilenetv1_100": ({}, 32),
    "efficientnet_b0": (dict(drop_path_rate=0.2), 64),
    "tf_efficientnetv2_b0": ({}, 64),
    "mixnet_s": ({}, 64),
    "convnext_atto": (dict(_CONVNEXT, drop_path_rate=0.1), 64),
    "convnextv2_atto": (_CONVNEXT, 64),
    "convnext_tiny": (dict(_CONVNEXT, head_norm_first=True), 64),
    "swin_tiny_patch4_window7_224": (dict(img_size=64, window_size=4, depths=(2, 1, 1, 1), embed_dim=24), 64),
    "swin_pico_patch4_window7_224": (dict(img_size=32, window_size=2, embed_dim=16), 32),
    "vit_tiny_patch16_224": (dict(_VIT, depth=5, drop_path_rate=0.1, drop_rate=0.1, proj_drop_rate=0.1), 32),
    "vit_small_patch16_224": (dict(_VIT, global_pool="avg", patch_drop_rate=0.25), 32),
    "vit_base_patch16_siglip_224": (_VIT, 32),
    "vit_small_patch14_reg4_dinov2": (dict(_VIT, img_size=28), 28),
    "vit_tiny_r_s16_p8_224": (dict(img_size=64, depth=4), 64),
    "deit_tiny_patch16_224": (_VIT, 32),
    "deit_tiny_distilled_patch16_224": (dict(_VIT, drop_rate=0.1), 32),
    "deit3_small_patch16_224": (_VIT, 32),
    "mixer_s16_224": (dict(img_size=32, drop_path_rate=0.1), 32),
    "resmlp_12_224": (dict(img_size=32), 32),
    "gmlp_ti16_224": (dict(img_size=32), 32),
    "mixer_s4_patch4_32": (dict(embed_dim=24), 32),
    "resmlp_s4_patch4_32": (dict(embed_dim=24, drop_rate=0.1), 32),
}
LONG = ("efficientnet_b0", "tf_efficientnetv2_b0", "mixnet_s", "mixer_s16_224", "resmlp_12_224")
"""Cut by the declaration of the MobileNets, or of the small mixers."""


def some(names: Iterable[str], long: Container[str]) -> list[Any]:
    """Names for ``parametrize``; those that take long run with ``-m slow`` alone."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in long else name for name in names]


@pytest.mark.parametrize("name", some(SMALL, LONG))
def test_stages_and_head_are_the_model(name: str) -> None:
    arguments, size = SMALL[name]
    model = ARCHITECTURES.build(dict(type="timm", name=name, num_classes=7, **arguments))
    proof = model.verify(size)
    assert proof.batch_sizes == (2, 3) and proof.gradients > 0
    assert proof.parameters == len(list(model.net.parameters()))
    assert len(model.stages) == 4 and model.num_classes == 7


TWO_HEADS: dict[str, tuple[dict[str, Any], int]] = {
    "deit_tiny_distilled_patch16_224": SMALL["deit_tiny_distilled_patch16_224"],
    "efficientformerv2_s0": (dict(img_size=64), 64),
    "levit_128s": (dict(img_size=64, embed_dim=(16, 24, 32), num_heads=(1, 2, 2), depth=(1, 1, 1), drop_rate=0.1), 64),
    "swiftformer_xs": ({}, 64),
}


@pytest.mark.parametrize("name", some(TWO_HEADS, ("efficientformerv2_s0", "swiftformer_xs")))
def test_a_distilled_model_tells_what_each_of_its_heads_says(name: str) -> None:
    """As timm does in its own training of the two; the logits stay their mean, as the proof has them."""
    arguments, size = TWO_HEADS[name]
    model = ARCHITECTURES.build(dict(type="timm", name=name, num_classes=7, **arguments))
    model.verify(size)
    images = torch.randn(2, 3, size, size)
    for training in (False, True):
        torch.manual_seed(0)
        known = model.train(training).knowledge(images)
        of_class, of_teacher = known.extra["class_logits"], known.extra["distillation_logits"]
        assert list(known.extra) == ["class_logits", "distillation_logits"]
        assert torch.equal((of_class + of_teacher) / 2, known.logits)
    model.net.set_distilled_training(True)
    torch.manual_seed(0)
    assert all(map(torch.equal, model.net(images), (of_class, of_teacher)))


# (layout, channels, grid) after each stage, at 224 pixels, as the papers have them.
FIELD = {
    "resnet18": ("cnn", "NCHW", [(64, 56), (128, 28), (256, 14), (512, 7)]),
    "resnet50": ("cnn", "NCHW", [(256, 56), (512, 28), (1024, 14), (2048, 7)]),
    "mobilenetv2_100": ("cnn", "NCHW", [(24, 56), (32, 28), (96, 14), (1280, 7)]),
    "mobilenetv1_100": ("cnn", "NCHW", [(128, 56), (256, 28), (512, 14), (1024, 7)]),
    "convnext_tiny": ("cnn", "NCHW", [(96, 56), (192, 28), (384, 14), (768, 7)]),
    "swin_tiny_patch4_window7_224": ("attention", "NHWC", [(96, 56), (192, 28), (384, 14), (768, 7)]),
    "swin_nano_patch4_window7_224": ("attention", "NHWC", [(64, 56), (128, 28), (256, 14), (512, 7)]),
    "swin_pico_patch4_window7_224": ("attention", "NHWC", [(48, 56), (96, 28), (192, 14), (384, 7)]),
    "vit_small_patch16_224": ("attention", "NLC", [(384, 14)] * 4),
    "deit_tiny_patch16_224": ("attention", "NLC", [(192, 14)] * 4),
    "mixer_b16_224": ("mlp", "NLC", [(768, 14)] * 4),
    "resmlp_12_224": ("mlp", "NLC", [(384, 14)] * 4),
}


@pytest.mark.parametrize("name", FIELD)
def test_stages_are_those_of_the_fields_tables(name: str) -> None:
    family, layout, sizes = FIELD[name]
    with on_meta():
        model = ARCHITECTURES.build(dict(type="timm", name=name, num_classes=1000))
    assert model.family == family
    assert [(s.layout, s.channels, s.grid) for s in model.specs] == [(layout, c, (g, g)) for c, g in sizes]


def test_twelve_blocks_are_cut_two_two_six_two() -> None:
    with on_meta():
        vit = ARCHITECTURES.build(dict(type="timm", name="deit_tiny_patch16_224", num_classes=10))
        deep = ARCHITECTURES.build(dict(type="timm", name="resmlp_24_224", num_classes=10))
    assert [sum(s.startswith("blocks") for s in stage.steps) for stage in vit.stages] == [2, 2, 6, 2]
    assert [sum(s.startswith("blocks") for s in stage.steps) for stage in deep.stages] == [2, 2, 18, 2]


def test_prefix_tokens_start_from_the_models_own() -> None:
    model = ARCHITECTURES.build(dict(type="timm", name="deit_tiny_distilled_patch16_224", num_classes=10))
    spec = model.specs[0]
    assert spec.prefix_tokens == 2 and spec.prefix is not None
    assert torch.equal(spec.prefix, torch.cat([model.net.cls_token[0], model.net.dist_token[0]]))


def test_features_are_the_input_of_the_last_linear_layer() -> None:
    for name in ("resnet18", "convnext_atto", "vit_tiny_patch16_224", "resmlp_s4_patch4_32", "mobilenetv2_100"):
        arguments, size = SMALL[name]
        model = ARCHITECTURES.build(dict(type="timm", name=name, num_classes=10, **arguments)).eval()
        seen: list[torch.Tensor] = []
        model.net.get_classifier().register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        images = torch.rand(2, 3, size, size)
        model.net(images)
        assert torch.equal(model.knowledge(images).features, seen[0])


def test_features_can_be_the_mean_over_all_positions() -> None:
    images = torch.rand(2, 3, 32, 32)
    for name, axes in (("resnet18", (2, 3)), ("swin_pico_patch4_window7_224", (1, 2)), ("vit_tiny_patch16_224", 1)):
        config = dict(type="timm", name=name, num_classes=3, **SMALL[name][0])
        pooled = ARCHITECTURES.build(dict(config, feature="avgpool")).eval()
        normed = pooled.net.forward_features(images)
        normed = normed[:, 1:] if name.startswith("vit") else normed
        known = pooled.knowledge(images)
        assert torch.equal(known.features, normed.mean(axes)) and torch.equal(known.logits, pooled.net(images))
    with pytest.raises(ConfigError, match="'avgpol'; did you mean 'avgpool'"):
        ARCHITECTURES.build(dict(config, feature="avgpol"))


def test_swin_n_and_swin_p_are_those_of_the_literature() -> None:
    for name, width in (("swin_nano_patch4_window7_224", 64), ("swin_pico_patch4_window7_224", 48)):
        net = timm.create_model(name, num_classes=10)
        assert net.patch_embed.proj.out_channels == width
        assert [len(layer.blocks) for layer in net.layers] == [2, 2, 2, 2]
        assert [layer.blocks[0].attn.num_heads for layer in net.layers] == [2, 4, 8, 16]


def test_a_tag_in_a_name_says_whose_normalisation_and_weights(tmp_path: Path) -> None:
    tagged = dict(type="timm", name="vit_small_patch16_224.augreg_in21k_ft_in1k", num_classes=5, **_VIT)
    model = ARCHITECTURES.build(tagged)
    plain = ARCHITECTURES.build(dict(tagged, name="vit_small_patch16_224"))
    assert model.mean == model.std == (0.5, 0.5, 0.5) and model.family == "attention" and model.name == tagged["name"]
    assert [str(spec) for spec in model.specs] == [str(spec) for spec in plain.specs]
    path = tmp_path / "student.safetensors"
    save_student(model, path, {})
    again = ARCHITECTURES.build(dict(tagged, checkpoint=str(path)))
    assert torch.equal(again.net.head.weight, model.net.head.weight)
    theirs = timm.create_model(tagged["name"], num_classes=5, **_VIT, checkpoint_path=str(path))
    assert torch.equal(theirs.head.weight, model.net.head.weight)


def test_a_models_own_normalisation_comes_with_it_and_can_be_changed() -> None:
    model = ARCHITECTURES.build(dict(type="timm", name="mixer_s16_224", num_classes=10))
    assert model.mean == (0.5, 0.5, 0.5)
    assert ARCHITECTURES.build(dict(type="timm", name="resnet18", num_classes=2, mean=(0, 0, 0))).mean == (0, 0, 0)


@pytest.mark.parametrize(
    ("config", "error", "reason"),
    [
        (dict(name="resnet81"), UnknownNameError, "did you mean .*resnet18"),
        (dict(name="convnext_tiny.fb_in2k"), UnknownNameError, "no weights 'fb_in2k' of 'convnext_tiny'; did you mean"),
        (dict(name="resnet18", drop_rat=0.1), ConfigError, "takes no argument 'drop_rat'.*drop_rate"),
        (dict(name="resmlp_12_224", patch_size=8), ConfigError, "timm fixes 'patch_size'"),
        pytest.param(
            dict(name="coat_tiny"),
            ConfigError,
            "later layers need .*3137x152 per image, .*785x152 per image",
            marks=pytest.mark.slow,
        ),
        (dict(name="test_mambaout", feature="avgpool"), ConfigError, "'avgpool' needs a declared cut"),
        (dict(name="resnet18", family="cnm"), ConfigError, "family 'cnm'; did you mean 'cnn'"),
        (dict(name="vit_tiny_patch16_224", depth=3), ConfigError, "3 blocks cannot make 4 stages"),
        (dict(name="resnet18", checkpoint="nowhere.pth"), FBTError, "'nowhere.pth': no such file"),
        (dict(name="resnet18", checkpoint="embedded:nothing"), FBTError, "nothing of that name is shipped"),
    ],
)
def test_what_cannot_be_built_is_one_line(config: dict, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason) as caught:
        ARCHITECTURES.build(dict(type="timm", num_classes=10) | config)
    assert "\n" not in str(caught.value)


def test_pretrained_weights_that_cannot_be_had_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    real = timm.create_model

    def offline(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
        if pretrained:
            raise OSError("no route to host")
        return real(name, pretrained=False, **kwargs)

    monkeypatch.setattr("fbt_architectures.timm_models.timm.create_model", offline)
    config = dict(type="timm", name="resnet18", num_classes=10, pretrained=True, head="new")
    with pytest.raises(FBTError, match=r"pretrained weights could not be downloaded.*no route to host.*checkpoint="):
        ARCHITECTURES.build(config)
    with torch.device("meta"):
        assert ARCHITECTURES.build(config).num_classes == 10  # where nothing has weights, none are fetched
    with pytest.raises(ConfigError, match="swin_pico_patch4_window7_224: timm has no pretrained weights of it"):
        ARCHITECTURES.build(dict(SWIN, pretrained=True))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (dict(pretrained=True), "its pretrained head has 1000 classes, and num_classes is 10; say head='new'"),
        (dict(pretrained=True, head="fresh"), "head can be 'new', or None for that of the weights, not 'fresh'"),
        (dict(head="new"), "head='new' is for a model with weights; set pretrained=True or a checkpoint"),
    ],
)
@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_head_is_replaced_only_where_that_is_said(library: str, config: dict, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"^resnet18: {reason}"):
        ARCHITECTURES.build(dict(type=library, name="resnet18", num_classes=10, **config))


@pytest.mark.parametrize("classes", [5, 10])
def test_a_new_head_comes_with_pretrained_weights(classes: int) -> None:
    """Weights that are in timm's configuration stand for those that it downloads."""
    weights = timm.create_model("test_vit", num_classes=10).state_dict()
    own = dict(state_dict=weights, num_classes=10)
    config = dict(type="timm", name="test_vit", pretrained=True, pretrained_cfg_overlay=own)
    assert torch.equal(ARCHITECTURES.build(dict(config, num_classes=10)).net.head.weight, weights["head.weight"])
    net = ARCHITECTURES.build(dict(config, num_classes=classes, head="new")).net
    assert net.head.weight.shape[0] == classes and torch.equal(net.cls_token, weights["cls_token"])
    assert classes != 10 or not torch.equal(net.head.weight, weights["head.weight"])


@pytest.mark.parametrize("config", [DEIT, SWIN, CNN, dict(type="torchvision", name="squeezenet1_1")], ids=str)
def test_a_new_head_comes_with_a_checkpoint_of_other_classes(config: dict, tmp_path: Path) -> None:
    old = ARCHITECTURES.build(dict(config, num_classes=7))
    torch.save(old.net.state_dict(), tmp_path / "a.pth")
    config = dict(config, num_classes=10, checkpoint=str(tmp_path / "a.pth"))
    with pytest.raises(FBTError, match=r"in the file and .* in the model"):
        ARCHITECTURES.build(config)
    new = ARCHITECTURES.build(dict(config, head="new")).net.state_dict()
    differ = {k.rsplit(".", 1)[0] for k, v in old.net.state_dict().items() if not torch.equal(v, new[k])}
    assert len(differ) == (2 if config["name"] == DEIT["name"] else 1)


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("swin_nano_patch4_window7_224", [64, 128, 256, 512]),
        ("swin_pico_patch4_window7_224", [48, 96, 192, 384]),
        ("resmlp_s4_patch4_32", [64, 64, 64]),
        ("mixer_s4_patch4_32", [64, 64, 64]),
    ],
)
def test_the_models_that_only_we_name_give_features_as_timms_do(name: str, channels: list[int]) -> None:
    with torch.device("meta"):
        net = timm.create_model(name, features_only=True)
        size = 32 if name.endswith("32") else 224
        maps = net(torch.zeros(1, 3, size, size))
        assert len(timm.create_model(name, features_only=True, out_indices=(0, 1)).feature_info.channels()) == 2
    assert net.feature_info.channels() == channels and len(maps) == len(channels)


FAMILIES = set(
    """
    beit_base_patch16_224 cait_xxs24_224 convit_tiny convmixer_768_32 cpubone_nano cs3darknet_focus_s csatv2
    cspnext_tiny davit_tiny deit_tiny_distilled_patch16_224 deit_tiny_patch16_224 densenet121 dla46x_c dpn48b
    edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientvit_b0 efficientvit_l1 efficientvit_m0
    ese_vovnet19b_slim_dw eva02_tiny_patch14_336 fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny ghostnet_050
    gmlp_ti16_224 halonet_h1 hardcorenas_b hgnetv2_b0 hiera_tiny_224 hieradet_small hrnet_w18_small iformer_t
    inception_next_atto inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small legacy_seresnet18
    legacy_xception levit_128s levit_256d lowformer_b0 mobilenetv3_small_050 mobilenetv5_base mobilevit_xxs
    mvitv2_tiny naflexvit_base_patch16_parfac_gap nest_tiny nextvit_small poolformerv2_s12 pvt_v2_b0 qwen3_vit_88m
    rdnet_tiny regnetx_002 repghostnet_050 repvit_m1 res2next50 resnest14d resnetv2_18 rexnet_100
    samvit_base_patch16_224 selecsls42 sequencer2d_s shvit_s1 skresnet18 starnet_s050 swiftformer_xs
    swin_tiny_patch4_window7_224 swinv2_cr_tiny_224 swinv2_tiny_window8_256 test_byobnet test_coatnet test_convnext
    test_efficientnet test_mambaout test_nfnet test_resnet test_vit test_vit_relpos tiny_vit_5m_224 tresnet_m
    twins_svt_small vgg11 visformer_tiny vit_tiny_r_s16_p8_224 vitamin_small_224 volo_d1_224 xception41p
    xcit_nano_12_p8_224
""".split()  # noqa: SIM905
)


"""One of each module and class; deepseek_vit (412 M parameters) is left to the report in docs/reference/coverage.md."""


def test_there_are_at_least_ninety_families() -> None:
    assert len(FAMILIES) >= 90


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_smallest_of_each_family_is_the_model(name: str) -> None:
    proof = ARCHITECTURES.build(dict(type="timm", name=name, num_classes=7)).verify()
    assert proof.gradients > 0


ENCODERS = {
    "vit_small_patch14_reg4_dinov2": SMALL["vit_small_patch14_reg4_dinov2"],
    "deit_tiny_distilled_patch16_224": SMALL["deit_tiny_distilled_patch16_224"],
    "vit_base_patch16_siglip_224": SMALL["vit_base_patch16_siglip_224"],
    "vit_small_patch16_dinov3": (dict(_VIT, depth=4), 32),
    "resnet18": SMALL["resnet18"],
    "convnext_atto": SMALL["convnext_atto"],
}


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_is_the_classifier_without_its_last_layer(name: str, tmp_path: Path) -> None:
    """Cut in the same places and proved; its features are what the classifier is given, also from its checkpoint."""
    options, size = ENCODERS[name]
    classifier = ARCHITECTURES.build(dict(type="timm", name=name, num_classes=7, **options)).eval()
    save_student(classifier, tmp_path / "student.safetensors", {"name": name})
    config = dict(type="timm", name=name, num_classes=0, checkpoint=str(tmp_path / "student.safetensors"), **options)
    encoder = ARCHITECTURES.build(config).eval()
    assert encoder.num_classes == 0 and encoder.num_features == classifier.num_features
    assert encoder.specs_at((size, size)) == classifier.specs_at((size, size))
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        known = encoder.knowledge(images)
        assert known.logits is None and torch.equal(known.features, encoder.net(images))
        torch.testing.assert_close(encoder(images), classifier.knowledge(images).features)
    if name in ("vit_small_patch14_reg4_dinov2", "resnet18"):
        assert encoder.verify(size).features
