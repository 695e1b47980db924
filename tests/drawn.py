"""Small models of many families, and seeded draws of two of them with a splice, an image size and losses."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fbt_plugins import ARCHITECTURES, StagedModel
from fbt_plugins.distill.splice import Piece

Size = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Row:
    """A small model.

    Attributes:
        family: what it stands for.
        arguments: of its config.
        step: None takes images of any size; a number takes those whose sides are multiples of it, told by ``img_size``.
        square: whether it is made for square images only.
        fixed: the one size that it takes; images are resized to it.
        stages: how many.
        ordered: whether it says where its tokens stand.
    """

    family: str
    arguments: dict[str, Any]
    step: int | None = None
    square: bool = False
    fixed: int | None = None
    stages: int = 4
    ordered: bool = True

    def config(self, size: Size, num_classes: int) -> dict[str, Any]:
        config = {"type": "timm", "num_classes": num_classes, **self.arguments}
        if self.stages != 4:
            config["stages"] = self.stages
        if self.fixed:
            return config | {"input_size": self.fixed}
        if self.step is None:
            return config
        own = tuple(-(-side // self.step) * self.step for side in ((max(size),) * 2 if self.square else size))
        return config | {"img_size": own} | ({} if own == size else {"input_size": own})


def row(family: str, name: str, **options: Any) -> Row:
    own = {k: options.pop(k) for k in ("step", "square", "fixed", "stages", "ordered") if k in options}
    return Row(family, {"name": name, **options}, **own)


_VIT = dict(patch_size=8, embed_dim=24, depth=4, num_heads=3)
_DEEP = dict(embed_dim=24, depth=4, num_heads=2)
_SWIN = dict(window_size=2, embed_dim=8, num_heads=(1, 2, 4, 8), depths=(1, 1, 1, 1))
_WIDER = _SWIN | dict(embed_dim=12, num_heads=(1, 1, 1, 1))  # no grid is as large as a width

ROWS = [
    row("resnet", "test_resnet"),
    row("resnet in 3 stages", "test_resnet", stages=3),
    row("convnext", "test_convnext"),
    row("efficientnet", "test_efficientnet"),
    row("byobnet", "test_byobnet"),
    row("nfnet", "test_nfnet"),
    row("mambaout", "test_mambaout"),
    row("vit", "vit_tiny_patch16_224", step=8, **_VIT),
    row("vit in 5 stages", "vit_tiny_patch16_224", step=8, stages=5, **(_VIT | {"depth": 6})),
    row("vit of odd width", "vit_tiny_patch16_224", step=8, **(_VIT | {"embed_dim": 23, "num_heads": 1})),
    row("deit, distilled", "deit_tiny_distilled_patch16_224", step=8, **_VIT),
    row("vit with registers", "vit_small_patch14_reg4_dinov2", step=8, **_VIT),
    row("vit, relative positions", "test_vit_relpos", step=8, patch_size=8),
    row("coatnet", "test_coatnet", step=32),
    row("eva", "vit_tiny_patch16_dinov3_qkvb", step=16, embed_dim=48, depth=4, num_heads=2),
    row("beit", "beit_base_patch16_224", step=8, patch_size=8, **_DEEP),
    row("cait", "cait_xxs24_224", step=8, patch_size=8, **_DEEP),
    row("convit", "convit_tiny", step=8, square=True, patch_size=8, local_up_to_layer=2, **_DEEP),
    row("cspnext", "cspnext_tiny"),
    row("davit", "davit_tiny", embed_dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_heads=(1, 2, 3, 4)),
    row("densenet", "densenet121", growth_rate=4, block_config=(1, 1, 1, 1)),
    row("dla", "dla46x_c", fixed=64),
    row("edgenext", "edgenext_xx_small"),
    row("efficientvit, mit", "efficientvit_b0"),
    row("efficientvit, msra", "efficientvit_m0", step=64, square=True),
    row("fasternet", "fasternet_t0"),
    row("ghostnet", "ghostnet_050"),
    row("mobilenetv3", "mobilenetv3_small_050"),
    row("hgnet", "hgnetv2_b0"),
    row("hiera", "hiera_tiny_224", step=32, embed_dim=16, num_heads=1),
    row("hiera, order unknown", "hiera_tiny_224", step=32, ordered=False, embed_dim=16, num_heads=1),
    row("hieradet", "sam2_hiera_tiny", fixed=64, embed_dim=24),
    row("iformer", "iformer_t", fixed=64),
    row("inception-next", "inception_next_atto"),
    row("lcnet", "lcnetv2_small"),
    row("levit", "levit_128s", fixed=64, img_size=64, embed_dim=(16, 24, 32), num_heads=(1, 2, 2), depth=(1, 1, 1)),
    row("mixer", "mixer_s4_patch4_32", step=8, patch_size=8, embed_dim=24),
    row("resmlp", "resmlp_s4_patch4_32", step=8, patch_size=8, embed_dim=16),
    row("mobilevit", "mobilevit_xxs"),
    row("naflexvit", "naflexvit_base_patch16_parfac_gap", step=16, **_DEEP),
    row("pvt", "pvt_v2_b0"),
    row("regnet", "regnetx_002"),
    row("rexnet", "rexnet_100"),
    row("repghostnet", "repghostnet_050"),
    row("sequencer", "sequencer2d_s", step=16, layers=(1, 1, 1, 1), embed_dims=(8, 16, 16, 16), hidden_sizes=(4,) * 4),
    row("starnet", "starnet_s050"),
    row("swiftformer", "swiftformer_xs", fixed=64),
    row("swin", "swin_pico_patch4_window7_224", step=32, **_SWIN),
    row("swin v2", "swinv2_tiny_window16_256", step=32, **_WIDER),
    row("swin v2 cr", "swinv2_cr_tiny_224", step=64, **_WIDER),
    row("twins", "twins_svt_small", step=32, embed_dims=(8, 16, 24, 32), depths=(2, 2, 2, 2)),
    row("sam", "samvit_base_patch16_224", step=8, square=True, patch_size=8, **_DEEP),
    row("vovnet", "ese_vovnet19b_slim_dw"),
    row("xcit", "xcit_nano_12_p8_224", step=8, **_DEEP),
    row("squeezenet", "squeezenet1_1", type="torchvision", fixed=64),
    row("shufflenet", "shufflenet_v2_x0_5", type="torchvision"),
    row("mnasnet", "mnasnet0_5", type="torchvision"),
]

SLOWER = {
    *("davit", "efficientvit, mit", "efficientvit, msra", "ghostnet", "hgnet", "lcnet", "mobilenetv3", "mobilevit"),
    *("regnet", "repghostnet", "rexnet", "sequencer", "shufflenet"),
}
"""Families of ROWS that take half a second to build."""

LARGE = [  # seconds each
    row("darknet", "cs3darknet_focus_s"),
    row("cpubone", "cpubone_nano", fixed=64),
    row("efficientformer", "efficientformer_l1", fixed=224),
    row("efficientformer v2", "efficientformerv2_s0", step=64, square=True),
    row("repvit", "repvit_m1"),
    row("resnetv2", "resnetv2_18"),
    row("resnest", "resnest14d"),
    row("res2net", "res2net50_14w_8s", layers=(1, 1, 1, 1)),
    row("senet", "legacy_seresnet18"),
    row("sknet", "skresnet18"),
    row("shvit", "shvit_s1", fixed=64),
    row("visformer", "visformer_tiny", step=64, square=True),
    row("tiny_vit", "tiny_vit_5m_224", fixed=64),
    row("mvit", "mvitv2_tiny", step=64, square=True),
    row("volo", "volo_d1_224", step=32, square=True),
    row("nest", "nest_tiny", step=32, square=True),
    row("gcvit", "gcvit_xxtiny", fixed=224),
    row("poolformer", "poolformerv2_s12"),
    row("vitamin", "vitamin_small_224", step=64, square=True),
    row("csatv2", "csatv2", fixed=64),
    row("dpn", "dpn48b"),
    row("googlenet", "googlenet", type="torchvision", fixed=64),
]

SIZES: list[Size] = [(32, 32), (32, 48), (64, 48), (48, 48), (40, 72), (64, 64)]
LOSSES = [("InfoNCELoss", "OFALoss"), ("MSELoss", "KDLoss"), ("InfoNCELoss", "KDLoss"), ("MSELoss", "OFALoss")]


@dataclass(frozen=True, eq=False)
class Draw:
    """One combination; its text is a test's name, and says all that is needed to run it again."""

    number: int
    student: Row
    teacher: Row
    splice: str
    size: Size
    num_classes: int
    losses: tuple[str, str]

    def __str__(self) -> str:
        models = f"S={self.student.family}, T={self.teacher.family}"
        return f"{self.number}: {models}, {self.splice}, {self.size[0]}x{self.size[1]}, {self.num_classes}"


def draws(seed: int, rows: list[Row], per_size: int) -> list[Draw]:
    """Combinations of a seed: families are dealt to the image sizes, and pairs are drawn among those of one size."""
    rng = random.Random(seed)
    dealt = rng.sample(rows, len(rows))
    found: list[Draw] = []
    for i, size in enumerate(SIZES):
        hand, num_classes = dealt[i :: len(SIZES)], rng.randint(2, 17)
        for j in range(per_size):
            student = hand[j % len(hand)]
            teacher = rng.choice([other for other in hand if other is not student])
            splice = draw_splice(rng, {"S": student.stages, "T": teacher.stages})
            number = 1000 * seed + len(found)
            found.append(Draw(number, student, teacher, splice, size, num_classes, rng.choice(LOSSES)))
    return found


def few(drawn: list[Draw], count: int) -> list[Draw]:
    """Draws of models that are built quickly: those with a family that none before them had, then the first others."""
    seen: set[str] = set()
    new, others = [], []
    for draw in drawn:
        rows = (draw.student, draw.teacher)
        families = {row.family for row in rows if row.ordered == all(r.ordered for r in rows)}  # others may be refused
        if not SLOWER.isdisjoint(row.family for row in rows):
            continue
        (new if families - seen else others).append(draw)
        seen |= families
    return sorted([*new, *others[: count - len(new)]], key=lambda draw: draw.number)


def draw_splice(rng: random.Random, count: dict[str, int]) -> str:
    """A splice of models with any numbers of stages, with one or two switches, heads alone included."""
    owner, pieces, reached = rng.choice("ST"), [], {"S": 1, "T": 1}
    for left in range(rng.choice((1, 2)), -1, -1):
        n = count[owner]
        first = 1 if not pieces else rng.randint(reached[owner] + 1, n + 1)
        if left and first > n:  # a head can only be the last piece
            first = n
        last = n if not left else rng.randint(first, n)
        pieces.append(str(Piece(owner, first, last)))
        reached[owner] = last
        owner = "T" if owner == "S" else "S"
    return "+".join(pieces)


@lru_cache(maxsize=16)
def _built(index: int, size: Size, num_classes: int) -> StagedModel:
    own = (ROWS + LARGE)[index]
    model = ARCHITECTURES.build(own.config(size, num_classes))
    if not own.ordered:
        model._told.raster, model._told.order = False, None
    model.specs_at(model.input_size or size)  # copies know them, too
    return model


def built(own: Row, size: Size, num_classes: int) -> StagedModel:
    """A row's model for images of a size, built once; not to be changed."""
    return _built((ROWS + LARGE).index(own), size, num_classes)
