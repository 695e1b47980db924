"""Networks of libraries that we have nothing to do with: how each is built, small, to see whether it can be cut.

``fbt inspect --all --library vit_pytorch`` lists those of a library that is installed.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

from torch import nn

from fbt_plugins import ConfigError, nearest


@dataclass(frozen=True)
class Network:
    """One network.

    Attributes:
        size: pixels of its images.
        make: builds it.
    """

    size: int
    make: Callable[[], nn.Module]


Rows = Iterator[tuple[str, Network]]
_VIT_SIZE = 64
_VIT: dict[str, Any] = dict(
    image_size=64, patch_size=8, num_classes=10, dim=64, depth=6, heads=4, mlp_dim=96, dim_head=16, channels=3
) | dict(input_shape=(64, 64), ndim=2)
_STAGES: dict[str, Any] = dict(dim=16, depth=(1, 1, 2, 1), heads=(1, 2, 4, 8), window_size=2)
_VIT_OWN: dict[str, dict[str, Any]] = {
    "ats_vit": dict(max_tokens_per_depth=(64, 32, 16, 16, 8, 8)),
    "cait": dict(cls_depth=2),
    "cross_vit": dict(sm_dim=32, lg_dim=64, sm_patch_size=8, lg_patch_size=16, depth=3),
    "crossformer": dict(dim=(32, 64, 64, 64), depth=(1, 1, 2, 1), global_window_size=(8, 4, 2, 1), local_window_size=7),
    "levit": dict(dim=(32, 64, 64), depth=2, heads=(2, 4, 4), mlp_mult=2),
    "look_vit": dict(patch_size=16, highres_patch_size=8, depth=4),
    "looped_vit": dict(pre_loop_depth=2, post_loop_depth=2, num_looped_blocks=2, loop_depth=2, depth=None),
    "max_vit": _STAGES,
    "max_vit_with_registers": _STAGES,
    "mobile_vit": dict(
        image_size=(64, 64),
        patch_size=(2, 2),
        dims=[64, 80, 96],
        channels=[16, 16, 24, 24, 48, 48, 64, 64, 80, 80, 160],
    ),
    "nest": dict(num_hierarchies=3, block_repeats=(2, 2, 2), patch_size=4),
    "pit": dict(depth=(2, 2, 2)),
    "regionvit": dict(dim=(16, 32, 64, 64), depth=(1, 1, 2, 1), window_size=2),
    "scalable_vit": _STAGES | dict(reduction_factor=(8, 4, 2, 1), window_size=(8, 4, None, None)),
    "sep_vit": _STAGES,
    "simple_vit_with_fft": dict(freq_patch_size=8),
    "simple_vit_with_hyper_connections": dict(num_residual_streams=2),
    "twins_svt": {
        f"s{i}_{name}": value for i in (1, 2, 3, 4) for name, value in (("local_patch_size", 2), ("global_k", 2))
    }
    | {f"s{i}_emb_dim": 16 * i for i in (1, 2, 3, 4)},
    "wwt": dict(num_slots=8),
    "xcit": dict(cls_depth=2),
}
_VIT_SIZES = {"crossformer": 224, "levit": 224, "sep_vit": 224}
_NOT_OF_IMAGES = ("3d", "1d", "vaat", "vivit", "vat")


def _vit_pytorch() -> Rows:
    """Every class that takes a number of classes, with the smallest arguments that it accepts."""
    package = importlib.import_module("vit_pytorch")
    for info in pkgutil.iter_modules(package.__path__):
        if any(word in info.name for word in _NOT_OF_IMAGES) or info.name in ("cct", "efficient"):
            continue
        try:
            module = importlib.import_module(f"vit_pytorch.{info.name}")
        except ImportError:  # some need packages of their own
            continue
        for name, kind in vars(module).items():
            if not (inspect.isclass(kind) and issubclass(kind, nn.Module) and kind.__module__ == module.__name__):
                continue
            takes = inspect.signature(kind.__init__).parameters
            given = {k: v for k, v in (_VIT | _VIT_OWN.get(info.name, {})).items() if k in takes and v is not None}
            if "num_classes" in takes and name != "Adapter":
                size = _VIT_SIZES.get(info.name, _VIT_SIZE)
                given |= {"image_size": size} if isinstance(given.get("image_size"), int) else {}
                yield f"{info.name}.{name}", Network(size, partial(kind, **given))
    vit = importlib.import_module("vit_pytorch.vit")
    efficient = importlib.import_module("vit_pytorch.efficient").ViT

    def make_efficient() -> nn.Module:
        body = vit.Transformer(64, 6, 4, 16, 96)
        found: nn.Module = efficient(image_size=64, patch_size=8, num_classes=10, dim=64, transformer=body)
        return found

    yield "efficient.ViT", Network(64, make_efficient)
    cct = importlib.import_module("vit_pytorch.cct").CCT
    small = dict(n_conv_layers=2, num_layers=6, num_heads=4, mlp_ratio=2, positional_embedding="learnable")
    yield "cct.CCT", Network(64, partial(cct, img_size=(64, 64), embedding_dim=64, num_classes=10, **small))


def _of_classes(package: str, rows: dict[str, dict[str, Any]], size: int = 64) -> Rows:
    for name, given in rows.items():
        module, _, kind = name.rpartition(".")
        found = getattr(importlib.import_module(f"{package}.{module}" if module else package), kind)
        yield name, Network(size, partial(found, **given))


_MIXER = dict(image_size=64, patch_size=8, dim=32, depth=6, num_classes=10)
_GREY = dict(spatial_dims=2, in_channels=3)
_SMALL_VIT = dict(img_size=(64, 64), patch_size=(8, 8), hidden_size=48, mlp_dim=96, num_layers=6, num_heads=4)
_MONAI: dict[str, dict[str, Any]] = {
    "DenseNet121": dict(_GREY, out_channels=10),
    "EfficientNetBN": dict(_GREY, model_name="efficientnet-b0", pretrained=False, num_classes=10),
    "resnet18": dict(spatial_dims=2, n_input_channels=3, num_classes=10),
    "SEResNet50": dict(_GREY, num_classes=10),
    "SENet154": dict(_GREY, num_classes=10),
    "ViT": dict(_GREY, **_SMALL_VIT, classification=True, num_classes=10, post_activation=None),
    "Classifier": dict(in_shape=(3, 64, 64), classes=10, channels=(8, 16, 32, 64), strides=(2, 2, 2, 2)),
    "TorchVisionFCModel": dict(model_name="resnet18", num_classes=10, use_conv=False, pool=None),
}
_GEFFNET = "mobilenetv3_small_100 efficientnet_b0 tf_efficientnet_lite0 mixnet_s fbnetc_100 mnasnet_a1 spnasnet_100"
_PRETRAINED = """alexnet:224 bninception:224 cafferesnet101:224 densenet121:224 dpn68:224 fbresnet152:224
    inceptionresnetv2:299 inceptionv4:299 nasnetamobile:224 se_resnet50:224 senet154:224 squeezenet1_1:224
    vgg11_bn:224 xception:299"""
_PYTORCHCV = """
    airnet50_1x64d_r2:224 alexnet:224 bagnet9:224 bn_vgg11:224 bninception:224 cbam_resnet18:224
    condensenet74_c4_g4:224 darknet_tiny:224 darts:224 densenet40_k12_cifar10:32 diaresnet20_cifar10:32 dicenet_wd5:64
    diracnet18v2:224 dla34:224 dpn68:224 drnc26:224 efficientnet_b0:224 fbnet_cb:224 fishnet99:224 ghostnet:224
    hardnet39ds:224 hrnet_w18_small_v1:224 igcv3_wd4:224 irevnet301:224 isqrtcovresnet18:64 menet108_8x1_g3:224
    mixnet_s:224 mobilenet_wd4:224 nin_cifar10:32 peleenet:224 preresnet20_cifar10:32 regnetx002:64
    resattnet56:224 resnet20_cifar10:32 resnetd50b:64 rir_cifar10:32 scnet50:224 selecsls42:224 senet16:224
    seresnet20_cifar10:32 shakeshakeresnet20_2x16d_cifar10:32 shufflenet_g1_wd4:224 shufflenetv2_wd2:224
    sparsenet121:224 sqnxt23_w1:224 squeezenet_v1_0:224 tresnet_m:64 vovnet27s:224 xception:299 zfnet:224
"""
_ENCODERS = """densenet121 dpn68 efficientnet-b0 inceptionv4 mit_b0 mobilenet_v2 mobileone_s0 resnet18 senet154
    timm-regnetx_002 tu-convnext_atto tu-resnet18 vgg11_bn xception"""


class _Classifier(nn.Module):
    """A linear layer behind what gives vectors, or maps of several resolutions, the last of which is pooled.

    Args:
        body: gives either.
        width: of the vectors, or channels of the last map.
        maps: whether it gives maps.
    """

    def __init__(self, body: nn.Module, width: int, maps: bool) -> None:
        super().__init__()
        self.body, self.pool, self.fc, self.maps = body, nn.AdaptiveAvgPool2d(1), nn.Linear(width, 10), maps

    def forward(self, x: Any) -> Any:
        x = self.body(x)
        return self.fc(self.pool(x[-1]).flatten(1) if self.maps else x)


def _sized(text: str) -> Iterator[tuple[str, int]]:
    for name, size in (word.split(":") for word in text.split()):
        yield name, int(size)


def _pretrainedmodels() -> Rows:
    package = importlib.import_module("pretrainedmodels")
    for name, size in _sized(_PRETRAINED):
        yield name, Network(size, partial(getattr(package, name), num_classes=1000, pretrained=None))


def _pytorchcv() -> Rows:
    get = importlib.import_module("pytorchcv.model_provider").get_model
    for name, size in _sized(_PYTORCHCV):
        yield name, Network(size, partial(get, name, pretrained=False, in_size=(size, size)))


def _geffnet() -> Rows:
    create = importlib.import_module("geffnet").create_model
    for name in _GEFFNET.split():
        yield name, Network(64, partial(create, name, pretrained=False, num_classes=10))


def _segmentation_models_pytorch() -> Rows:
    encoders = importlib.import_module("segmentation_models_pytorch").encoders

    def make(name: str) -> nn.Module:
        encoder = encoders.get_encoder(name, weights=None)
        return _Classifier(encoder, encoder.out_channels[-1], maps=True)

    for name in _ENCODERS.split():
        if name in encoders.encoders or name.startswith("tu-"):
            yield name, Network(96, partial(make, name))


def _open_clip() -> Rows:
    vit = importlib.import_module("open_clip.transformer").VisionTransformer
    resnet = importlib.import_module("open_clip.modified_resnet").ModifiedResNet
    small = dict(image_size=64, patch_size=8, width=64, layers=6, heads=4, mlp_ratio=2, output_dim=32)
    kinds: dict[str, dict[str, Any]] = {
        "vit": {},
        "vit_avg": dict(pool_type="avg"),
        "vit_attentional_pool": dict(attentional_pool=True, attn_pooler_heads=4),
    }
    for name, given in kinds.items():
        yield name, Network(64, partial(_with_classifier, vit, small | given))
    given = dict(layers=[1, 1, 1, 1], output_dim=32, heads=4, image_size=64, width=16)
    yield "modified_resnet", Network(64, partial(_with_classifier, resnet, given))


def _with_classifier(kind: Any, given: dict[str, Any]) -> nn.Module:
    return _Classifier(kind(**given), 32, maps=False)


def _birder() -> Rows:
    """The smallest network of each of its modules, as far as names tell."""
    importlib.import_module("birder.net")
    registry = importlib.import_module("birder.model_registry")
    modules: dict[str, list[str]] = {}
    for name in registry.registry.list_models(task=registry.Task.IMAGE_CLASSIFICATION):
        kinds = [kind.__module__ for kind in registry.registry._get_model_by_name(name).__mro__]
        own = next(kind for kind in kinds if kind.startswith("birder.net."))  # a configured one is made on the way
        modules.setdefault(own, []).append(name)
    words = [
        "atto",
        "femto",
        "pico",
        "nano",
        "xxs",
        "_xs",
        "xt",
        "tiny",
        "t0",
        "small",
        "_s",
        "m0",
        "b0",
        "_0_5",
        "18",
        "_t",
        "11",
        "mini",
    ]
    for names in modules.values():
        small = next((name for word in words for name in names if word in name), names[0])
        yield small, Network(128, partial(registry.registry.net_factory, small, 10, size=(128, 128)))


_TOKENS: dict[str, Any] = dict(
    hidden_size=48, num_hidden_layers=6, num_attention_heads=4, intermediate_size=96, image_size=64, patch_size=8
)
_TOWERS = dict(vision_config=_TOKENS, text_config=_TOKENS, projection_dim=32)
_WINDOWS = dict(window_size=2)
_TRANSFORMERS: dict[str, dict[str, Any]] = {
    "clip": _TOWERS,
    "donut-swin": _WINDOWS,
    "efficientnet": dict(width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280),
    "hiera": dict(embed_dim=16, image_size=(64, 64)),
    "imagegpt": dict(n_embd=48, n_layer=6, n_head=4),
    "metaclip_2": _TOWERS,
    "mobilevitv2": dict(image_size=256),
    "perceiver": dict(num_latents=16, d_latents=64, num_self_attends_per_block=6, num_cross_attention_heads=1),
    "shieldgemma2": _TOWERS,
    "siglip": _TOWERS,
    "siglip2": _TOWERS,
    "swin": _WINDOWS,
    "swinv2": _WINDOWS,
    "timm_wrapper": dict(architecture="resnet18"),
}


def _transformers() -> Rows:
    """Every class for images, of its own config, with narrow blocks where these are equal."""
    package = importlib.import_module("transformers")
    auto = importlib.import_module("transformers.models.auto.modeling_auto")

    def make(kind: str, type_: str, given: dict[str, Any]) -> nn.Module:
        config = package.CONFIG_MAPPING[type_]
        known = vars(config())
        small = {k: v for k, v in _TOKENS.items() if k in known and (k == "image_size" or "depths" not in known)}
        found: nn.Module = getattr(package, kind)(config(num_labels=10, **small | given))
        return found

    for type_, kinds in auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.items():
        given = _TRANSFORMERS.get(type_, {})
        size = given.get("image_size", 64)
        for kind in (kinds,) if isinstance(kinds, str) else kinds:
            yield kind, Network(size if isinstance(size, int) else size[0], partial(make, kind, type_, given))


LIBRARIES: dict[str, Callable[[], Rows]] = {
    "birder": _birder,
    "g_mlp_pytorch": lambda: _of_classes("g_mlp_pytorch", {"gMLPVision": _MIXER}),
    "geffnet": _geffnet,
    "mlp_mixer_pytorch": lambda: _of_classes(
        "mlp_mixer_pytorch", {"MLPMixer": _MIXER | {"channels": 3}, "permutator.Permutator": _MIXER | {"segments": 4}}
    ),
    "monai": lambda: _of_classes("monai.networks.nets", _MONAI),
    "open_clip": _open_clip,
    "pretrainedmodels": _pretrainedmodels,
    "pytorchcv": _pytorchcv,
    "res_mlp_pytorch": lambda: _of_classes("res_mlp_pytorch", {"ResMLP": _MIXER}),
    "segmentation_models_pytorch": _segmentation_models_pytorch,
    "transformers": _transformers,
    "vit_pytorch": _vit_pytorch,
}
"""How the networks of each are listed, by the name under which it is imported."""


@cache
def _networks(library: str) -> dict[str, Network]:
    return dict(LIBRARIES[library]())


def names() -> Iterator[str]:
    """ "library/network" for those libraries that are installed."""
    for library in LIBRARIES:
        if find_spec(library) is not None:
            try:
                yield from (f"{library}/{name}" for name in _networks(library))
            except ImportError:  # it lacks a package of its own, and could not be used either
                continue


def config(name: str) -> dict[str, Any]:
    """What builds "library/network" and cuts it, without a proof."""
    here = f"{__name__}:network"
    return dict(type="module", path=here, arguments={"name": name}, image_size=_find(name).size, verify=False)


def network(name: str) -> nn.Module:
    """Builds "library/network"."""
    return _find(name).make()


def _find(name: str) -> Network:
    library, _, rest = name.partition("/")
    if library not in LIBRARIES or rest not in (known := _networks(library)):
        raise ConfigError(f"no network {name!r}{nearest(name, names())}")
    return known[rest]
