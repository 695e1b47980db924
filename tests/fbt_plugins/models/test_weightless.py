"""Looking at models without running them for real: the meta device, parts of a network, the census of families."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from conftest import SWIN
from torch import Tensor, nn
from torch.nn import functional as F

from fbt_plugins import ARCHITECTURES
from fbt_plugins.models.census import of_model, of_stages, take_census
from fbt_plugins.models.net_part import NetPart
from fbt_plugins.models.weightless import Shortened, meta_copy, on_meta, whole_copy

CHANNELS, SIZES = 6, (2, 6, 4, 5)
MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "in rows": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "half precision": lambda x: x.bfloat16(),
    "a view of every second row": lambda x: x[:, :, ::2],
}
FUNCTIONS: dict[str, Callable[[Tensor], object]] = {
    "gelu": F.gelu,
    "gelu of tanh": lambda x: F.gelu(x, approximate="tanh"),
    "layer norm": lambda x: F.layer_norm(x, x.shape[-1:], x.new_ones(x.shape[-1])),
    "layer norm behind a permutation": lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (CHANNELS,)),
    "layer norm of a whole map": lambda x: torch.native_layer_norm(x, x.shape[1:], None, None, 1e-5),
    "batch norm": lambda x: F.batch_norm(x, x.new_zeros(CHANNELS), x.new_ones(CHANNELS), x.new_ones(CHANNELS)),
    "batch norm in training": lambda x: F.batch_norm(
        x, x.new_zeros(CHANNELS), x.new_ones(CHANNELS), x.new_ones(CHANNELS), x.new_ones(CHANNELS), training=True
    ),
    "linear": lambda x: F.linear(x.permute(0, 2, 3, 1), x.new_ones(3, CHANNELS), x.new_ones(3)),
    "first weights": lambda x: nn.init.trunc_normal_(x, 1.0, 0.02, -2.0, 2.0).fill_(2).mul_(0.5).add_(1),
    "numbers put in place": lambda x: nn.init.zeros_(nn.init.uniform_(nn.init.normal_(x))).clamp_(0, 1).mul_(x.sum()),
    "others put in place": lambda x: x.mul_(x.mean((0, 1))).add_(x.sum(3, True)),
    "linear of rows": lambda x: F.linear(x.mean((2, 3)), x.new_ones(3, CHANNELS), x.new_ones(3)),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("arrange", MAPS.values(), ids=MAPS)
def test_same_as_the_real_thing(function: Callable[[Tensor], object], arrange: Callable[[Tensor], Tensor]) -> None:
    real = function(arrange(torch.rand(SIZES)))
    with torch.no_grad(), Shortened():
        found = function(arrange(torch.empty(SIZES, device="meta")))
    firsts = [x[0] if isinstance(x, tuple) else x for x in (real, found)]
    assert [(x.shape, x.stride(), x.dtype) for x in firsts[1:]] == [(x.shape, x.stride(), x.dtype) for x in firsts[:1]]
    if isinstance(real, tuple):
        assert [x.shape for x in real] == [x.shape for x in found]


@pytest.mark.parametrize(
    "layer", [nn.LayerNorm(5), nn.LayerNorm((1, 2, 3, 4, 5)), nn.BatchNorm2d(5).eval(), nn.Linear(4, 5)], ids=str
)
def test_what_is_wrong_is_said_as_ever(layer: nn.Module) -> None:
    shadow, images = meta_copy(layer), torch.empty(2, 3, 6, 7, device="meta")
    said = []
    for mode in (torch.no_grad(), Shortened()):
        with mode, pytest.raises(RuntimeError) as error:
            shadow(images)
        said.append(str(error.value))
    assert said[0] == said[1]


def test_real_tensors_are_computed() -> None:
    x = torch.rand(2, 3)
    with Shortened():
        found, ones = F.gelu(x), torch.zeros(2, 3).add_(1)
    assert torch.equal(found, F.gelu(x)) and torch.equal(ones, torch.ones(2, 3))


def test_models_are_built_without_weights() -> None:
    with on_meta():
        model = ARCHITECTURES.build(SWIN)
        with pytest.raises(RuntimeError):
            torch.ones(2, 3).mul_(torch.ones(2, 4))
    real = {name: (value.shape, value.dtype) for name, value in ARCHITECTURES.build(SWIN).state_dict().items()}
    assert {name: (value.shape, value.dtype) for name, value in model.state_dict().items()} == real
    assert all(value.is_meta for value in model.parameters())


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_module_with_a_computed_weight_can_be_copied() -> None:
    layer = nn.utils.weight_norm(nn.Conv2d(3, 3, 1))  # keeps its weight as no leaf of a graph
    with pytest.raises(RuntimeError, match="deepcopy protocol"):
        copy.deepcopy(layer)
    twin, x = whole_copy(layer), torch.ones(2, 3, 4, 4)
    assert torch.equal(twin(x), layer(x))
    twin.weight_g.data.mul_(2)
    assert not torch.equal(twin(x), layer(x))
    assert meta_copy(layer)(x.to("meta")).shape == x.shape


# ---- net part -------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.token = nn.Parameter(torch.zeros(1, 3))
        self.second[0].register_buffer("table", torch.ones(3), persistent=False)


def test_a_part_holds_what_it_is_told_and_nothing_of_it_is_a_copy() -> None:
    net = Net()
    part = NetPart(net, ["second.1"], ["token", "second.0.table"])
    assert set(dict(part.named_parameters())) == {"second_1.weight", "second_1.bias", "token"}
    assert dict(part.named_parameters())["token"] is net.token and part.net is net
    assert part.second_0_table is net.second[0].table and "second_0_table" not in part.state_dict()


def test_replaced_tensors_are_linked_again() -> None:
    net = Net()
    part = NetPart(net, [], ["token"])
    net.token = nn.Parameter(torch.ones(1, 3))
    assert part.token is not net.token
    part.relink()
    assert part.token is net.token


def test_a_module_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="third"):
        NetPart(Net(), ["third"], [])


# ---- census ---------------------------------------------------------------------------------------------------------


KNOWN = {
    "cnn": (
        "resnet50 seresnet50 convnext_tiny efficientnet_b0 mobilenetv2_100 regnety_002 poolformer_s12 "
        "resnext50_32x4d ecaresnet26t gcresnet50t skresnet18 resnest14d convnextv2_atto mobilenetv3_small_100 "
        "mobilenetv4_conv_small densenet121 vgg11 inception_v3 xception41 convmixer_768_32 resnet50_clip "
        "convformer_s18 focalnet_tiny_srf repvgg_a0 ghostnet_100 mambaout_tiny resnet18 resnet34 mobilenetv1_100 "
        "repvit_m0_9 fastvit_t8 hgnetv2_b0 "
    ),
    "attention": (
        "vit_small_patch16_224 swin_tiny_patch4_window7_224 pvt_v2_b0 xcit_nano_12_p16_224 nest_tiny "
        "deit_tiny_patch16_224 deit3_small_patch16_224 beit_base_patch16_224 cait_xxs24_224 "
        "swinv2_tiny_window8_256 pvt_v2_b2 twins_svt_small volo_d1_224 convit_tiny davit_tiny mvitv2_tiny "
        "eva02_tiny_patch14_224 hiera_tiny_224 swin_pico_patch4_window7_224 swin_nano_patch4_window7_224 "
        "gcvit_xxtiny "
    ),
    "mlp": ("mixer_b16_224 resmlp_12_224 gmlp_s16_224 resmlp_s4_patch4_32 gmixer_12_224 "),
    "hybrid": (
        "coatnet_0_rw_224 mobilevit_s levit_128s vit_tiny_r_s16_p8_224 maxvit_tiny_tf_224 mobilevitv2_100 "
        "efficientformer_l1 edgenext_small botnet26t_256 halonet26t lambda_resnet26t visformer_tiny "
        "tiny_vit_5m_224 caformer_s18 mobilenetv4_hybrid_medium fastvit_sa12 swiftformer_xs vit_small_r26_s32_224 "
        "levit_conv_128s coatnext_nano_rw_224 maxxvit_rmlp_nano_rw_256 efficientformerv2_s0 efficientvit_b0 "
        "efficientvit_m0 eca_botnext26ts_256 sebotnet33ts_256 bat_resnext26ts nextvit_small shvit_s1 "
    ),
}
PAPERS = {  # FBT's own: what is read off them decides its splices
    *("resnet18", "resnet50", "mobilenetv2_100", "convnext_tiny", "swin_tiny_patch4_window7_224"),
    *("swin_nano_patch4_window7_224", "swin_pico_patch4_window7_224", "vit_small_patch16_224"),
    *("deit_tiny_patch16_224", "mixer_b16_224", "resmlp_12_224"),
}
DEFAULT = {
    "mobilevit_s",
    "nest_tiny",
    "poolformer_s12",
    "seresnet50",
    "vit_tiny_r_s16_p8_224",
    "levit_conv_128s",
    *PAPERS,
}
"""Small hybrids and others are in test_traced_families.py."""
assert set(" ".join(KNOWN.values()).split()) >= DEFAULT
CASES = [
    pytest.param(family, name, marks=() if name in DEFAULT else pytest.mark.slow)
    for family, names in KNOWN.items()
    for name in names.split()
]


@pytest.mark.parametrize(("family", "name"), CASES)
def test_well_known_names(family: str, name: str) -> None:
    with on_meta():
        model = ARCHITECTURES.build(dict(type="timm", name=name, num_classes=10))
    assert model.family == family


def test_a_config_has_the_last_word() -> None:
    model = ARCHITECTURES.build(dict(type="timm", name="resnet18", num_classes=10, family="mlp"))
    assert model.family == "mlp" and {s.family for s in model.specs} == {"mlp"}


def test_operations_are_counted_and_weights_are_told_from_activations() -> None:
    with torch.device("meta"):
        layer, x = nn.Linear(8, 16), torch.empty(2, 5, 8)
        out, census = take_census(layer, x, layer.parameters())
        assert out.shape == (2, 5, 16) and census.macs == 2 * 5 * 8 * 16 and census.family == "mlp"
        conv = nn.Conv2d(4, 6, 3, padding=1)
        _, census = take_census(conv, torch.empty(1, 4, 7, 7), conv.parameters())
        assert census.macs == census.convolutions == 7 * 7 * 6 * 4 * 9 and census.family == "cnn"
        patches = nn.Conv2d(3, 6, 4, 4)
        _, census = take_census(patches, torch.empty(1, 3, 8, 8), patches.parameters())
        assert census.convolutions == 0 and census.family is None
        attention = nn.MultiheadAttention(8, 2, batch_first=True).train()
        run = nn.Module()
        run.forward = lambda x: attention(x, x, x)[0]  # type: ignore[method-assign]
        _, census = take_census(run, x, attention.parameters())
        assert census.attention and census.family == "attention"


def test_models_of_several_kinds_of_stages_are_hybrids() -> None:
    assert of_stages([None, None, "attention"]) == ["attention"] * 3 and of_stages(["cnn", None]) == ["cnn", "mlp"]
    assert of_model(["attention", "mlp"]) == "attention" and of_model(["cnn", "mlp"]) == "hybrid"
    assert of_model(["cnn", "attention"]) == "hybrid" and of_model(["cnn", "cnn"]) == "cnn"
