"""What ``check_config`` finds: all that is wrong with a config, a line each, before a run trips over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import builder

from fbt_plugins.config.loading import load_config
from fbt_plugins.engine.check import check_cells, check_config
from fbt_plugins.errors import ConfigError

FLAGSHIP = Path(__file__).parents[3] / "configs" / "fbt_convnext_resmlp.py"
NO_SHARDS = (
    "FSDP and DeepSpeed are not supported: they take parameters apart, and a fusion model runs stages that it shares "
    "with teacher and student; drop this key: --launcher sets up DistributedDataParallel"
)


def problems(options: dict[str, Any], path: Path = FLAGSHIP) -> list[str]:
    """What is wrong with a config file, the flagship unless another is given, with these options."""
    config = load_config(path, options)
    config.work_dir = options.get("work_dir", "unused")
    with pytest.raises(ConfigError) as caught:
        check_config(config)
    assert not [line for line in caught.value.problems if not line.startswith(f"{path}: ") or "\n" in line]
    return [line.removeprefix(f"{path}: ") for line in caught.value.problems]


def found_all(lines: list[str], expected: list[str]) -> None:
    """Each line that was expected is there once, and no other."""
    for start in expected:
        assert len([line for line in lines if line.startswith(start)]) == 1, (start, lines)
    assert len(lines) == len(expected), [line for line in lines if not line.startswith(tuple(expected))]


def test_all_that_is_wrong_is_said_at_once() -> None:
    faults: dict[str, tuple[Any, str]] = {
        "optim_wraper": (1, "unknown key 'optim_wraper'; did you mean 'optim_wrapper'"),
        "model_wrapper_cfg": (dict(type="MMFullyShardedDataParallel"), f"model_wrapper_cfg: {NO_SHARDS}"),
        "strategy": (dict(type="DeepSpeedStrategy"), f"strategy: {NO_SHARDS}"),
        "runner_type": ("FlexibleRunner", "runner_type: there is one runner here, DistillRunner; drop this key"),
        "train_dataloader.batchsize": (4, "train_dataloader: unknown key 'batchsize'; did you mean 'batch_size'"),
        "train_dataloader.batch_size": ("many", "train_dataloader: batch_size must be a whole number, not 'many'"),
        "train_dataloader.num_workers": (-1, "train_dataloader: num_workers must be 0 or more, not -1"),
        "train_dataloader.drop_last": ("maybe", "train_dataloader: drop_last must be True or False, not 'maybe'"),
        "train_dataloader.in_memory": ("maybe", "train_dataloader: in_memory must be True or False, not 'maybe'"),
        "train_dataloader.dataset.transforms.0.type": (
            "RandomCropp",
            "train_dataloader.dataset.transforms[0]: torchvision.transforms.v2 has no 'RandomCropp'; "
            "did you mean 'RandomCrop'",
        ),
        "val_dataloader.dataset.split": ("trian", "val_dataloader.dataset: no split 'trian'; did you mean 'train'"),
        "val_evaluator.topkk": (1, "val_evaluator: unknown key 'topkk'; did you mean 'topk'"),
        "test_evaluator.topk": (
            [5],
            "test_evaluator: TopK: topk must be different whole numbers above 0, 1 among them",
        ),
        "train_cfg.max_epoch": (3, "train_cfg: unknown key 'max_epoch'; did you mean 'max_epochs'"),
        "train_cfg.max_epochs": ("abc", "train_cfg: max_epochs must be a whole number, not 'abc'"),
        "train_cfg.val_interval": (0, "train_cfg: val_interval must be 1 or more, not 0"),
        "optim_wrapper.clip_grad.max_nrm": (
            5,
            "optim_wrapper.clip_grad: unknown key 'max_nrm'; did you mean 'max_norm'",
        ),
        "optim_wrapper.optimizer.lrr": (0.1, "optim_wrapper.optimizer: unknown key 'lrr'; did you mean 'lr'"),
        "param_scheduler.0.type": ("LinearLRR", "param_scheduler.0.type: no parameter scheduler 'LinearLRR'; did you"),
        "default_hooks.checkpoint.intervall": (
            1,
            "default_hooks.checkpoint: unknown key 'intervall'; did you mean 'interval'",
        ),
        "visualizer": (
            dict(type="Visualizer", vis_backends=[dict(type="WandVisBackend")]),
            "visualizer.vis_backends.0.type: no vis_backend 'WandVisBackend'; did you mean 'WandbVisBackend'",
        ),
        "randomness.seed": ("abc", "randomness.seed: a whole number, not 'abc'"),
        "device": ("cuda:99", "device: device 'cuda:99': this machine has no CUDA device 99"),
        "load_from": ("/nowhere.pth", "load_from: '/nowhere.pth': no such file"),
        "ema": (dict(decay=1.5), "ema: decay must be in [0, 1), not 1.5"),
        "cka": (dict(images=100), "cka: batch_size must be from 4 to images, not 256 of 100"),
        "compile": ("fast", "compile must be True, False or torch.compile's arguments, not 'fast'"),
        "channels_last": (1, "channels_last must be True or False, not 1"),
        "reference": (dict(top=70.0, source="x"), "reference: unknown key 'top'; did you mean 'top1'"),
        "model.fuson": (None, "model: unknown key 'fuson'; did you mean 'fusion'"),
        "model.logit_loss.gama": (1.2, "model.logit_loss: OFALoss: no argument 'gama'; did you mean 'gamma'"),
        "model.logit_loss.wieght": (2.0, "model.logit_loss: OFALoss: no argument 'wieght'; did you mean 'weight'"),
        "model.fusion.splise": ("S1-2+T3-4", "model.fusion: L2GFusion: no argument 'splise'; did you mean 'splice'"),
    }
    lines = problems({option: value for option, (value, _) in faults.items()})
    found_all(lines, [line for _, line in faults.values()] + ["reference: 'top1' is missing"])


SEVERAL: list[dict[str, tuple[Any, str]]] = [
    {  # a model that cannot be built does not hide what is wrong with its losses, its fusion and its edges
        "model.student.type": ("tim", "model.student: 'tim' is not a registered architecture; did you mean 'timm'"),
        "model.teacher.checkpoint": (
            "embedded:convnext",
            "model.teacher: checkpoint 'embedded:convnext': nothing of that name is shipped",
        ),
        "model.fusion.type": ("L2G", "model.fusion: 'L2G' is not a registered fusion; did you mean 'L2GFusion' or"),
        "model.feature_loss.temperature": ("hot", "model.feature_loss: temperature must be a number, not 'hot'"),
        "model.logit_loss.type": (
            "OFALos",
            "model.logit_loss: 'OFALos' is not a registered loss; did you mean 'OFALoss'",
        ),
        "model.task_loss.weight": (None, "model.task_loss: weight must be a finite number, not None"),
        "train_dataloader.dataset.type": (
            "FashionMNISTMinni",
            "train_dataloader.dataset.type: no dataset 'FashionMNISTMinni'; did you mean 'FashionMNISTMini'",
        ),
        "val_dataloader": (3, "val_dataloader: expected a dict, got 3"),
        "test_evaluator": (None, "test_dataloader, test_cfg and test_evaluator: set all three or none"),
        "optim_wrapper.optimizer.type": (
            "AdmW",
            "optim_wrapper.optimizer.type: no optimizer 'AdmW'; did you mean 'AdamW'",
        ),
        "randomness": (3, "randomness: expected a dict, got 3"),
        "device": ("tpu", "device: device 'tpu': not a device"),
        "cka": (dict(image=100), "cka: unknown key 'image'; did you mean 'images'"),
        "compile": (dict(mod="default"), "compile: unknown key 'mod'; did you mean 'mode'"),
    },
    {
        "model.student.name": ("resmlp_s4_patch4_23", "model.student: timm has no model 'resmlp_s4_patch4_23'; did"),
        "model.teacher.checkpoint": ("/nowhere/t.pth", "model.teacher: checkpoint '/nowhere/t.pth': no such file"),
        "model.logit_loss.type": (
            "os.system",
            "model.logit_loss: 'os.system' is not a registered loss (dotted import paths are not accepted)",
        ),
        "model.edges": ([3], "model.edges: an edge is a name or a dict, not 3"),
    },
    {
        "model.student.embed_dims": (
            64,
            "model.student: resmlp_s4_patch4_32: timm takes no argument 'embed_dims' for it; did you mean 'embed_dim'",
        ),
        "model.edges": (5, "model: edges must be a list, not 5"),
    },
    {
        "model.fusion.splice": (
            "S1-3+T5",
            "model.fusion: splice 'S1-3+T5': 'T5' is out of range: the teacher has stages 1 to 4",
        ),
        "model.edges": (["teacher_to_studnt"], "model.edges: 'teacher_to_studnt': there is no model 'studnt' here"),
    },
    {
        "model.fusion.splice": ("hello", "model.fusion: splice 'hello': 'hello' is not a piece"),
        "model.logit_loss": (
            dict(type="OFALoss", weight="abc"),
            "model.logit_loss: weight must be a finite number, not 'abc'",
        ),
    },
    {  # what is not there, or of another form
        "train_dataloader.dataset": (None, "train_dataloader.dataset is missing"),
        "train_dataloader.sampler": (
            None,
            "train_dataloader.sampler is missing: dict(type='SeededSampler', shuffle=True)",
        ),
        "val_dataloader.sampler": (
            None,
            "val_dataloader.sampler is missing: dict(type='SeededSampler', shuffle=False)",
        ),
        "train_cfg": (dict(max_epochs=3), "train_cfg: 'by_epoch' is missing: True (with max_epochs) or False (with"),
        "optim_wrapper.optimizer": (
            None,
            "optim_wrapper.optimizer is missing: dict(type='AdamW', lr=0.001)",
        ),
        "param_scheduler": (5, "param_scheduler: expected a dict with a 'type', got 5"),
    },
    {"model.fusion.splice": ("S1-4", "model.fusion: splice 'S1-4': it never switches: all of it is student")},
    {"model.logit_loss.gamma": (-1, "model.logit_loss: OFALoss: gamma must be above 0, not -1")},
    {"model.student.input_size": (0, "model.student: timm: input_size must be 1 or more, not 0")},
    {"model.student.img_size": (64, "model.student: resmlp_s4_patch4_32 cannot take images of 32x32 pixels")},
    {
        "model.student.num_classes": (
            100,
            "model: class counts differ: model.student has 100, model.teacher has 10, the",
        )
    },
    {"model": (3, "model: expected a dict, got 3"), "train_cfg": (3, "train_cfg: expected a dict, got 3")},
    {"train_dataloader": (3, "train_dataloader: expected a dict, got 3")},
    {"optim_wrapper.optimizer.lr": (-1, "optim_wrapper.optimizer: Invalid learning rate: -1")},  # when it is built
    {
        "train_dataloader.num_batch_per_epoch": (
            0,
            "train_dataloader: num_batch_per_epoch must be a whole number, 1 or",
        ),
        "val_dataloader.num_batch_per_epoch": (
            8,
            "val_dataloader: num_batch_per_epoch asks for 2,000 images, and the data have 1,000: lower it, or drop it",
        ),
    },
    {
        "optim_wrapper.clip_grad.max_norm": (-1, "optim_wrapper.clip_grad: max_norm must be above 0, not -1"),
        "train_dataloader.persistent_workers": (True, "train_dataloader: persistent_workers is for worker processes"),
        "val_dataloader.timeout": (5, "val_dataloader: timeout is for worker processes: set num_workers above 0"),
        "device": ([0, 1], "device: one of cpu, cuda and cuda:N, not [0, 1]"),
        "param_scheduler": (
            [dict(type="MultiStepLR", milestones=[0.5, 0.75])],
            "param_scheduler.0: milestones must be whole numbers, not [0.5, 0.75]",
        ),
    },
    {
        "param_scheduler": (
            [dict(type="ReduceOnPlateauLR", monitor="student_acc")],
            "param_scheduler.0: monitor 'student_acc' is no metric of the validation; did you mean 'student_top",
        )
    },
    {  # which mmengine divides by, in the second iteration
        "param_scheduler.0.start_factor": (0, "param_scheduler: ZeroDivisionError"),
    },
    {"optim_wrapper.type": ("ApexOptimWrapper", "optim_wrapper: AssertionError: Apex is not installed")},
    {
        "train_cfg": (
            dict(by_epoch=False, max_iters=9, max_epochs=3),
            "train_cfg: max_epochs does not go with by_epoch=False; where it is inherited, rep",
        )
    },
    {"resume": ("gone.pth", "resume: 'gone.pth': no such file")},
    {"resume": (True, "--resume: no checkpoint in unused")},
]


@pytest.mark.parametrize("faults", SEVERAL, ids=lambda faults: next(iter(faults)))
def test_what_is_wrong_is_said(faults: dict[str, tuple[Any, str]]) -> None:
    found_all(problems({option: value for option, (value, _) in faults.items()}), [line for _, line in faults.values()])


def test_what_torch_and_mmengine_would_stumble_over_in_a_loader() -> None:
    """When it is opened, or in the first step."""
    registered = "expected dict(type=NAME) with the name of a function in mmengine's registry FUNCTIONS, not "
    methods = "multiprocessing_context is one of fork, spawn, forkserver, not"
    faults: dict[str, tuple[Any, str]] = {
        "collate_fn": ("pseudo_collate", f".collate_fn: {registered}'pseudo_collate'; or drop it"),
        "worker_init_fn": (dict(type="seed_all"), f".worker_init_fn: {registered}{{'type': 'seed_all'}}; or drop it"),
        "batch_sampler": (dict(type="BatchSampler"), ".batch_sampler.type: no data sampler 'BatchSampler'"),
        "drop_last": (True, ": drop_last is the batch_sampler's; set it to False here"),
        "shuffle": (True, ": shuffle is the sampler's: sampler=dict(type='SeededSampler', shuffle=True)"),
        "prefetch_factor": (0, ": prefetch_factor must be 1 or more, not 0"),
        "timeout": (-1, ": timeout must be 0 or more, not -1"),
        "num_workers": (2.0, ": num_workers must be a whole number, not 2.0"),
        "batch_size": (None, ": 'batch_size' is missing"),
        "multiprocessing_context": ("thread", f": {methods} 'thread'"),
    }
    lines = problems({f"val_dataloader.{option}": value for option, (value, _) in faults.items()})
    found_all(lines, [f"val_dataloader{line}" for _, line in faults.values()])
    no_batches = {"batch_sampler": dict(type="DefaultSampler"), "drop_last": False}
    (line,) = problems({f"val_dataloader.{option}": value for option, value in no_batches.items()})
    assert line.startswith(
        "val_dataloader.batch_sampler: DefaultSampler makes no batches: it must take sampler and batch_s"
    )


def test_what_torch_and_mmengine_take_in_a_loader_is_not_refused() -> None:
    taken = {"shuffle": False, "collate_fn": dict(type="torch.utils.data.default_collate")}
    for wrong in ("torch.utils.data.stack_all", "torch.utils.data", ".x"):
        options = taken | {"worker_init_fn": dict(type=wrong)}
        (line,) = problems({f"val_dataloader.{option}": value for option, value in options.items()})
        assert line.startswith("val_dataloader.worker_init_fn: expected dict(type=NAME)")


def test_nothing_follows_a_figure_that_never_changes_or_is_not_there() -> None:
    teacher = (
        "'teacher_top1': the teacher is frozen, so this never changes; it can be student_top1 or fusion_top1 or st"
    )
    best, plateau = "default_hooks.checkpoint.save_best", [dict(type="ReduceOnPlateauLR", monitor="teacher_top1")]
    options = {best: "teacher_top1", "param_scheduler": plateau}
    found_all(problems(options), [f"{best}: {teacher}", f"param_scheduler.0: monitor: {teacher}"])
    (line,) = problems({best: "student_top2"})
    assert line.startswith(
        f"{best}: 'student_top2': no metric of the validation; it can be student_top1 or fusion_top1"
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(mixup_alpha=-1), "mixup_alpha is a finite number from 0, got -1"),
        (dict(cutmix_alpha=float("inf")), "cutmix_alpha is a finite number from 0, got inf"),
        (dict(prob=1.5), "prob is from 0 to 1, got 1.5"),
        (dict(switch_prob=-0.5), "switch_prob is from 0 to 1, got -0.5"),
        (dict(label_smoothing=2), "label_smoothing is from 0 to 1, got 2"),
    ],
)
def test_what_cannot_be_mixed_is_refused(options: dict[str, Any], says: str) -> None:
    assert problems({"data_preprocessor": options})[0] == f"data_preprocessor: Mixing: {says}"


def test_a_config_that_lacks_everything(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("model = dict(type='Distill')\n")
    lines = problems({}, tmp_path / "mine.py")
    assert lines[0] == "train_dataloader is missing" and "model: 'student' is missing" in lines
    assert "model.type: 'Distill' is not 'Distiller'" in lines


def test_what_cannot_be_held_in_memory_is_refused() -> None:
    options = {"in_memory": True, "num_workers": 2, "dataset.transforms.1.type": "ColorJitter"}
    first, second = problems({f"train_dataloader.{option}": value for option, value in options.items()})
    assert first.endswith("in_memory=True has no worker processes and collates nothing; drop num_workers")
    assert second.startswith("train_dataloader.dataset.transforms[1]: in_memory=True augments whole batches")
    folder = {"in_memory": True, "dataset.type": "ImageFolder", "dataset.split": "val", "dataset.root": "."}
    lines = problems({f"val_dataloader.{option}": value for option, value in folder.items()})
    assert lines[0].startswith("val_dataloader: in_memory=True: ImageFolder is not held in memory")


def test_a_teachers_file_is_held_against_the_model(tmp_path: Path) -> None:
    torch.save({"head.fc.weight": torch.zeros(100, 208)}, tmp_path / "teacher.pth")
    (line,) = problems({"model.teacher.checkpoint": str(tmp_path / "teacher.pth")})
    assert line.startswith(f"model.teacher: checkpoint '{tmp_path / 'teacher.pth'}' does not fit convnext_tiny: ")
    assert "head.fc.weight is (100, 208) in the file and (10, 208) in the model" in line


def test_the_cells_of_a_matrix_are_checked_by_name(tmp_path: Path) -> None:
    cells = {
        "a/fbt": builder(tmp_path)(),
        "a/kd": builder(tmp_path)(**{"model.logit_loss.type": "KDLos"}),
        "b/fbt": builder(tmp_path)(**{"model.student.name": "resmlp_s4_patch4_23"}),
        "b/kd": builder(tmp_path)(
            **{"model.student.name": "resmlp_s4_patch4_23", "optim_wrapper.optimizer.lr": "fast"}
        ),
        "c/kd": builder(tmp_path)(**{"model.teacher.checkpoint": "gone.pth"}),
    }
    with pytest.raises(ConfigError) as caught:
        check_cells(cells)
    where = f"{tmp_path / 'tiny.py'}: "
    assert [line.partition("; ")[0] for line in caught.value.problems] == [
        f"a/kd: {where}model.logit_loss: 'KDLos' is not a registered loss",
        f"b/fbt and 1 more: {where}model.student: timm has no model 'resmlp_s4_patch4_23'",
        f"b/kd: {where}optim_wrapper.optimizer: lr must be a number, not 'fast'",
        f"c/kd: {where}model.teacher: checkpoint 'gone.pth': no such file",
    ]
