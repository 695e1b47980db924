"""The cells of the shipped matrices, at a size that a test can run."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from mmengine.config import Config

from fbt_plugins.config.loading import complete, load_matrix
from fbt_plugins.config.matrix import Matrix

CONFIGS = Path(__file__).parents[1] / "configs"
MATRICES = (
    "cifar100",
    "imagenet1k",
    "sakd",
    "fashion_mnist",
    "fashion_mnist_tuning",
    "fashion_mnist_reasons",
    "search/splices",
    "compare/sakd_vs_cakd",
)
SAME_CELLS = ("search/study",)
"""Matrices whose cells are another's."""

IMAGE = 32
_TOKEN = dict(img_size=IMAGE, patch_size=8, embed_dim=24, depth=4, num_heads=3)
SMALL = {
    "resnet": dict(layers=(1, 1, 1, 1), channels=(8, 16, 24, 32)),
    "mobilenet": dict(name="mobilenetv2_050"),
    "convnext": dict(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)),
    "swin": dict(img_size=IMAGE, patch_size=2, window_size=2, embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8)),
    "vit": _TOKEN,
    "deit": _TOKEN,
    "mixer": dict(name="mixer_s4_patch4_32", embed_dim=16),
    "resmlp": dict(name="resmlp_s4_patch4_32", embed_dim=16),
}


@cache
def matrix(name: str) -> Matrix:
    """A shipped matrix, read once."""
    return load_matrix(CONFIGS / f"{name}.py")


def cells(name: str) -> list[tuple[str, str, str]]:
    """All (config, pair, method) of a matrix."""
    return [(name, pair, method) for pair, method in matrix(name).cells()]


def sample(all_cells: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Each method once, all that are called as a splice together, with a pair that changes from method to method."""
    by_method: dict[str, list[tuple[str, str, str]]] = {}
    for cell in all_cells:
        by_method.setdefault("splice" if "+" in cell[2] else cell[2], []).append(cell)
    return [group[7 * i % len(group)] for i, group in enumerate(by_method.values())]


def cell_config(name: str, pair: str, method: str, weights: bool = False) -> Config:
    """A cell's config, without the weights of a teacher unless they are asked for."""
    config = Config(complete(matrix(name).cell(pair, method), {}))
    config.work_dir = "unused"
    if config.model.teacher and not weights:
        config.model.teacher = {k: v for k, v in config.model.teacher.items() if k not in ("checkpoint", "pretrained")}
    return config


def small(model: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a distiller whose models are tiny, of the same families."""
    options = {k: v for k, v in model.items() if k != "type"}
    for role in ("student", "teacher"):
        if options.get(role):
            given = {k: options[role][k] for k in ("type", "name", "num_classes", "mean", "std") if k in options[role]}
            options[role] = given | SMALL[next(kind for kind in SMALL if given["name"].startswith(kind))]
    return options
