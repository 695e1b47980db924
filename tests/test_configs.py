"""Every shipped config is right, and every cell of the shipped matrices builds and runs a step."""

from __future__ import annotations

import itertools
import json
import runpy
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import timm
import torch
from mmengine.config import Config

from fbt_plugins import load_plugins
from fbt_plugins.config.hashing import config_hash, training_hash
from fbt_plugins.config.loading import complete, load_config, load_matrix
from fbt_plugins.config.matrix import Matrix
from fbt_plugins.distill.distiller import Distiller
from fbt_plugins.engine.check import check_config
from fbt_plugins.engine.teacher_run import TeacherRun
from fbt_plugins.models.knowledge import Batch

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
    "compare/flagship",
    "compare/without_labels",
    "compare/few_labels",
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


# ---- configs --------------------------------------------------------------------------------------------------------


TEACHER_MATRICES = ("teachers/cifar100", "teachers/peers_fashion_mnist")
FILES = sorted(
    path
    for path in CONFIGS.rglob("*.py")
    if "_base_" not in path.parts
    and str(path.relative_to(CONFIGS).with_suffix("")) not in (*MATRICES, *SAME_CELLS, *TEACHER_MATRICES)
)
ALL = list(itertools.chain.from_iterable(map(cells, MATRICES)))
SAMPLE = sample(ALL)
REST = [pytest.param(*cell, marks=pytest.mark.slow) for cell in ALL if cell not in SAMPLE]
RECIPES = [  # a pair of each recipe, and what its row of the published table says
    ("cifar100", "swin-t_resnet18", 300, 128, dict(type="SGD", lr=0.05, weight_decay=2e-3)),
    ("cifar100", "convnext-t_resmlp-s12", 300, 128, dict(type="AdamW", lr=5e-4, weight_decay=0.05)),
    ("imagenet1k", "swin-t_mobilenetv2", 100, 64, dict(type="SGD", lr=0.1, weight_decay=1e-4)),
    ("imagenet1k", "resnet50_swin-n", 300, 128, dict(type="AdamW", lr=5e-4, weight_decay=0.05)),
    ("sakd", "resnet34_resnet18", 100, 64, dict(type="SGD", lr=0.2, weight_decay=1e-4)),
]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_nothing_is_wrong(path: Path) -> None:
    config = load_config(path)
    config.work_dir = "unused"
    distiller = check_config(config)
    assert distiller is not None and distiller.image_size is not None


@pytest.mark.parametrize(("name", "pair", "epochs", "batch", "optimizer"), RECIPES)
def test_nothing_is_wrong_with_a_cell_of_each_recipe(
    name: str, pair: str, epochs: int, batch: int, optimizer: dict
) -> None:
    config = cell_config(name, pair, "fbt")
    distiller = check_config(config)
    assert distiller is not None and distiller.image_size == (224, 224)
    assert config.train_cfg.max_epochs == epochs and config.train_dataloader.batch_size == batch
    assert {key: config.optim_wrapper.optimizer[key] for key in optimizer} == optimizer
    mlp_or_attention = optimizer["type"] == "AdamW"
    assert ("data_preprocessor" in config) == ("clip_grad" in config.optim_wrapper) == mlp_or_attention
    processes = 8
    assert config.auto_scale_lr == dict(base_batch_size=processes * batch, enable=True)
    assert (config.ema or {}).get("decay") == (0.99996 if mlp_or_attention else None)
    if name != "sakd" and mlp_or_attention:
        assert config.param_scheduler[1].eta_min == 1e-6
    assert config.model.task_loss.label_smoothing == (0.0 if name == "sakd" else 0.1)


def _models() -> dict[str, dict]:
    return runpy.run_path(str(CONFIGS / "_base_" / "models.py"))["_models"]


@pytest.mark.parametrize("name", _models())
def test_the_tables_models_are_pinned_to_weights_trained_on_imagenet_1k(name: str) -> None:
    load_plugins()
    model = _models()[name]
    pretrained = timm.get_pretrained_cfg(model["name"])
    base, _, tag = model["name"].partition(".")
    if name in ("swin-n", "swin-p", "mobilenetv1"):  # students of which nobody has such weights
        assert not tag and model["mean"] == (0.485, 0.456, 0.406)
        return
    assert tag.endswith("in1k") and "in12k" not in tag and pretrained.num_classes == 1000
    assert (model["mean"], model["std"]) == (pretrained.mean, pretrained.std)
    assert pretrained.input_size == (3, 224, 224) and f"{base}.{tag}" in timm.list_pretrained(f"{base}.*")


def test_what_ofa_kd_trained_without_drop_path_has_none() -> None:
    for name, pair in (("cifar100", "convnext-t_swin-p"), ("imagenet1k", "resnet50_swin-n")):
        assert matrix(name).cell(pair, "fbt")["model"]["student"]["drop_path_rate"] == 0.0


@pytest.mark.parametrize(("name", "pair", "method"), [*SAMPLE, *REST])
def test_a_cell_runs_a_step(name: str, pair: str, method: str) -> None:
    config = cell_config(name, pair, method)
    options = small(config.model.to_dict())
    classes = options["student"]["num_classes"]
    torch.manual_seed(0)
    data_info = dict(num_classes=classes, num_samples=8)
    model = Distiller(**options, image_size=(IMAGE, IMAGE), data_info=data_info).train()
    batch = Batch(torch.tensor([1, classes - 1, 2, 3]), torch.arange(4))
    total, losses = model.parse_losses(model.losses(torch.rand(4, 3, IMAGE, IMAGE), batch))
    total.backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert (config.model.teacher is None) == (method in ("scratch", "labels"))


@pytest.mark.parametrize(("name", "pairs"), [("cifar100", 12), ("imagenet1k", 15), ("sakd", 3), ("fashion_mnist", 6)])
def test_a_matrix_has_its_pairs_and_figures_of_methods_that_it_has(name: str, pairs: int) -> None:
    tables = matrix(name)
    assert len(tables.pairs) == pairs and list(tables.seeds) == [0, 1, 2, 3, 4]
    for overrides in tables.pairs.values():
        for method, figure in overrides.get("reference", {}).items():
            assert method in (*tables.methods, "pat") and 10 < figure["top1"] < 100 and figure["source"]


def test_figures_stand_where_they_belong() -> None:
    figures = {
        ("cifar100", "convnext-t_resmlp-s12", "fbt"): 78.03,
        ("cifar100", "convnext-t_swin-p", "fbt_c"): 50.46,
        ("cifar100", "swin-t_resnet18", "fbt_c"): 25.57,
        ("cifar100", "vit-s_mobilenetv2", "crd"): 78.14,
        ("cifar100", "vit-s_mobilenetv2", "rsd"): 81.68,
        ("cifar100", "convnext-t_resmlp-s12", "rsd_logits"): 81.15,
        ("imagenet1k", "swin-t_resnet18", "fbt_g"): 70.37,
        ("imagenet1k", "convnext-t_resmlp-s12", "rsd"): 78.41,
        ("sakd", "resnet50_mobilenetv1", "dkd"): 72.05,
    }
    for (name, pair, method), top1 in figures.items():
        assert matrix(name).cell(pair, method)["reference"]["top1"] == top1


def test_ofas_exits_have_their_authors_weight_on_cifar100() -> None:
    tables = matrix("cifar100")
    for pair in tables.pairs:
        assert tables.cell(pair, "ofa")["model"]["stage_loss"] == dict(type="OFAExitsLoss", weight=0.1)
    assert "ofa_0.1" not in {method for _, method in tables.cells()}  # it would be the same
    imagenet = matrix("imagenet1k")
    weights = [imagenet.cell("swin-t_resnet18", m)["model"]["stage_loss"].get("weight") for m in ("ofa", "ofa_0.1")]
    assert weights == [None, 0.1]


def test_the_papers_pair_is_spliced_as_its_sentence_says() -> None:
    config = cell_config("cifar100", "convnext-t_resmlp-s12", "fbt")
    model = Distiller(**small(config.model.to_dict()), image_size=(IMAGE, IMAGE))
    assert model.splices == {"fusion": ["T1-3+S4"]}
    words = "C1-3+M4 is T1-3+S4: the teacher (cnn) gives the first stages, the student (mlp) the rest"
    assert model.splices_in_words() == [words]


def _splice(name: str, pair: str, method: str) -> str:
    model = Distiller(**small(cell_config(name, pair, method).model.to_dict()), image_size=(IMAGE, IMAGE))
    return model.splices["fusion"][0]


CNN_STUDENTS = ("resnet18", "mobilenetv2")
PAPERS = [(name, pair) for name in ("cifar100", "imagenet1k") for pair in matrix(name).pairs]
FEW = [("cifar100", pair) for pair in ("swin-t_resnet18", "convnext-t_swin-p", "mixer-b16_deit-t")]


@pytest.mark.parametrize(
    ("name", "pair"), [*FEW, *(pytest.param(*cell, marks=pytest.mark.slow) for cell in PAPERS if cell not in FEW)]
)
def test_the_cnn_of_a_pair_gives_the_first_stages_whoever_teaches(name: str, pair: str) -> None:
    teacher, student = pair.split("_")
    cnn_teaches = teacher in ("convnext-t", "resnet50") and student not in CNN_STUDENTS
    first, last = "TS" if cnn_teaches else "ST"
    assert _splice(name, pair, "fbt") == f"{first}1-3+{last}4"
    assert _splice(name, pair, "fbt_m1-3_c4") == f"{last}1-3+{first}4"
    for method in ("fbt_a", "fbt_b"):
        assert _splice(name, pair, method) == f"{first}1-3+{last}head"
    for letter in "cdefg":
        assert _splice(name, pair, f"fbt_{letter}") == f"{first}1-3+{last}4"


@pytest.mark.parametrize("pair", list(matrix("sakd").pairs))
def test_models_of_one_architecture_are_student_teacher(pair: str) -> None:
    assert _splice("sakd", pair, "fbt") == "S1-3+T4"


@pytest.mark.slow
@pytest.mark.parametrize("pair", list(matrix("cifar100").pairs))
def test_the_papers_own_models_say_which_is_the_cnn(pair: str) -> None:
    """Whole models, without weights."""
    model = check_config(cell_config("cifar100", pair, "fbt"))
    teacher, student = pair.split("_")
    family = {"swin": "attention", "vit": "attention", "deit": "attention", "mixer": "mlp", "resmlp": "mlp"}
    expected = [family.get(name.partition("-")[0], "cnn") for name in (teacher, student)]
    assert [model.families[role] for role in ("teacher", "student")] == expected
    cnn_teaches = expected[0] == "cnn" != expected[1]
    assert model.splices["fusion"] == ["T1-3+S4" if cnn_teaches else "S1-3+T4"]
    (words,) = model.splices_in_words()
    assert ("neither is more local" in words) == ("cnn" not in expected)


def test_a_familys_name_by_hand_decides_a_splice() -> None:
    options = small(cell_config("cifar100", "mixer-b16_deit-t", "fbt").model.to_dict())
    options["teacher"]["family"] = "cnn"
    model = Distiller(**options, image_size=(IMAGE, IMAGE))
    assert model.splices_in_words() == [
        "C1-3+M4 is T1-3+S4: the teacher (cnn) gives the first stages, the student (attention) the rest"
    ]


TEACHERS = [
    ("swin-t", 89.26, dict(type="AdamW", lr=5e-5), 1e-6),
    ("vit-s", 92.44, dict(type="AdamW", lr=5e-5), 1e-6),
    ("mixer-b16", 87.62, dict(type="AdamW", lr=5e-5), 1e-6),
    ("convnext-t", 88.42, dict(type="SGD", lr=5e-3), 1e-4),
]


@pytest.mark.parametrize(("name", "top1", "optimizer", "end"), TEACHERS)
def test_a_teacher_is_fine_tuned_at_a_tenth_of_its_kinds_rate(
    name: str, top1: float, optimizer: dict, end: float
) -> None:
    config = load_config(CONFIGS / "teachers" / "cifar100.py", pair=name, method="finetune")
    config.work_dir = "unused"
    distiller = check_config(config)
    assert distiller is not None and distiller.image_size == (224, 224) and distiller.teacher is None
    assert config.model.student.pretrained and config.model.student.head == "new"
    assert distiller.student.mean == ((0.5,) * 3 if name in ("vit-s", "mixer-b16") else (0.5071, 0.4865, 0.4409))
    assert {key: config.optim_wrapper.optimizer[key] for key in optimizer} == optimizer
    assert config.param_scheduler[1].eta_min == end and config.param_scheduler[1].end == 300
    assert config.train_cfg.max_epochs == 300 and config.reference.top1 == top1


@pytest.mark.parametrize(
    ("name", "teachers"),
    [("cifar100", 4), ("fashion_mnist", 2), ("fashion_mnist_reasons", 1), ("compare/sakd_vs_cakd", 4)],
)
def test_teachers_are_made_as_their_students_want_them(name: str, teachers: int) -> None:
    """By a config that trains the same model, and to the file that is looked for."""
    made: dict[str, dict] = {}
    for pair in matrix(name).pairs:
        student = cell_config(name, pair, "t_s", weights=True)
        teacher = student.model.teacher.to_dict()
        if not str(teacher.pop("checkpoint")).startswith("embedded:"):
            run = TeacherRun(**student.teacher_run)
            assert run.if_missing == "refuse"
            if run.command not in made:
                made[run.command] = run.load(student).model.student.to_dict()
            own = made[run.command]
            in_its_file = {"mean", "std"} - set(teacher)
            assert {k: v for k, v in own.items() if k not in ("pretrained", "head", *in_its_file)} == teacher
    assert len(made) == teachers


def test_the_shipped_teacher_is_the_flagships_and_its_configs_student() -> None:
    flagship = load_config(CONFIGS / "fbt_convnext_resmlp.py").model.teacher.to_dict()
    made = load_config(CONFIGS / "teachers" / "convnext_fashion_mnist.py").model.student.to_dict()
    for own in ("checkpoint", "mean", "std"):
        flagship.pop(own, None), made.pop(own, None)
    assert flagship == made


@pytest.mark.parametrize("name", MATRICES)
def test_matrices_compare_stages_and_that_makes_no_other_run(name: str) -> None:
    config = cell_config(name, *matrix(name).cells()[0])
    assert config.cka == dict(images=512)
    same, other = ({**config.to_dict(), **changes} for changes in (dict(cka=None), dict(ema=dict(decay=0.5))))
    assert config_hash(config.to_dict()) == config_hash(same) != config_hash(other)


@pytest.mark.parametrize(
    ("name", "method"),
    [("fbt_convnext_resmlp", "fbt"), ("fitnet_rsd_ofa_convnext_resmlp", "fitnet_rsd_ofa")],
)
def test_a_shipped_config_is_its_cell_and_its_student_alone_has_the_same_training(name: str, method: str) -> None:
    shipped = load_config(CONFIGS / f"{name}.py").to_dict()
    alone = cell_config("compare/flagship", "convnext_resmlp", "scratch").to_dict()
    cell = cell_config("compare/flagship", "convnext_resmlp", method, weights=True).to_dict()
    assert config_hash(shipped) == config_hash(cell)
    figure = shipped["without_teacher"]
    assert figure["training"] == training_hash(shipped) == training_hash(alone)
    trials = CONFIGS.parent / "docs" / "results" / "flagship" / "trials.jsonl"
    lines = map(json.loads, trials.read_text(encoding="utf-8").splitlines())
    top1 = [line["top1"]["student"] for line in lines if line["method"] == "scratch"]
    assert (len(top1), round(mean(top1), 2), round(stdev(top1), 2)) == (
        figure["seeds"],
        figure["top1"],
        figure["std"],
    )
