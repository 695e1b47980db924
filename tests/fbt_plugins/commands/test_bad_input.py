"""What users get wrong: one line, exit code 2, no traceback, and what would be right."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[3]
FLAGSHIP = ROOT / "configs" / "fbt_convnext_resmlp.py"
BASE = f"_base_ = {str(FLAGSHIP)!r}\n"


@pytest.fixture
def train(tool: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable:
    """Runs tools/train.py in an empty folder; exit code and lines on stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> tuple[int, list[str]]:
        done = tool("train", *args)
        return done.code, done.err.splitlines()

    return run


OPTIONS = [
    # misspelt keys and names
    ("modle.student.name=resnet18", "there is no modle in the config; did you mean 'model'"),
    ("model.teachr.name=resnet18", "there is no model.teachr in the config; did you mean 'teacher'"),
    ("optim_wraper=1", "unknown key 'optim_wraper'; did you mean 'optim_wrapper'"),
    ("model.fuson=None", "model: unknown key 'fuson'; did you mean 'fusion'"),
    ("model.logit_loss.gama=1.2", "model.logit_loss: OFALoss: no argument 'gama'; did you mean 'gamma'"),
    ("model.logit_loss.type=OFALos", "'OFALos' is not a registered loss; did you mean 'OFALoss'"),
    ("model.logit_loss.type=os.system", "dotted import paths are not accepted"),
    ("model.fusion.type=L2G", "'L2G' is not a registered fusion; did you mean 'L2GFusion' or"),
    ("model.student.type=tim", "'tim' is not a registered architecture; did you mean 'timm'"),
    ("model.student.name=resmlp_s4_patch4_23", "did you mean 'resmlp_s4_patch4_32'"),
    ("model.student.embed_dims=64", "takes no argument 'embed_dims' for it; did you mean 'embed_dim'"),
    ("optim_wrapper.optimizer.type=AdmW", "no optimizer 'AdmW'; did you mean 'Adam"),
    ("optim_wrapper.optimizer.lrr=0.1", "optim_wrapper.optimizer: unknown key 'lrr'; did you mean 'lr'"),
    ("param_scheduler.0.type=LinearLRR", "did you mean 'LinearLR"),
    ("param_scheduler.7.end=3", "param_scheduler is a list of 2; no item '7'"),
    ("train_dataloader.batchsize=4", "unknown key 'batchsize'; did you mean 'batch_size'"),
    ("train_dataloader.batch_size=many", "train_dataloader: batch_size must be a whole number, not 'many'"),
    (
        "train_dataloader.dataset.type=FashionMNISTMinni",
        "no dataset 'FashionMNISTMinni'; did you mean 'FashionMNISTMini'",
    ),
    ("train_dataloader.dataset.transforms.0.type=RandomCropp", "no 'RandomCropp'; did you mean 'RandomCrop'"),
    ("train_cfg.max_epoch=3", "train_cfg: unknown key 'max_epoch'; did you mean 'max_epochs'"),
    (
        "default_hooks.chekpoint.interval=1",
        "there is no default_hooks.chekpoint in the config; did you mean 'checkpoint'",
    ),
    ("default_hooks.checkpoint.intervall=1", "unknown key 'intervall'; did you mean 'interval'"),
    ("optim_wrapper.optimizer.lr=-1", "optim_wrapper.optimizer: Invalid learning rate: -1"),
    ("train_dataloader=3", "train_dataloader: expected a dict, got 3"),
    ("val_evaluator.topkk=1", "val_evaluator: unknown key 'topkk'; did you mean 'topk'"),
    # values
    ("train_cfg.max_epochs=abc", "train_cfg: max_epochs must be a whole number, not 'abc'"),
    ("train_cfg.val_interval=0", "val_interval must be 1 or more, not 0"),
    ("train_dataloader.num_workers=-1", "num_workers must be 0 or more, not -1"),
    ("train_dataloader.drop_last=maybe", "drop_last must be True or False, not 'maybe'"),
    ("train_dataloader.in_memory=maybe", "train_dataloader: in_memory must be True or False, not 'maybe'"),
    ("train_dataloader.dataset.split=trian", "no split 'trian'; did you mean 'train'"),
    ("val_evaluator.topk=[5]", "topk must be whole numbers above 0, 1 among them"),
    ("optim_wrapper.clip_grad.max_nrm=5", "optim_wrapper.clip_grad: unknown key 'max_nrm'; did you mean 'max_norm'"),
    ("randomness.seed=abc", "randomness.seed: a whole number, not 'abc'"),
    ("model.feature_loss.temperature=hot", "model.feature_loss: InfoNCELoss: temperature must be a number, not 'hot'"),
    ("model.student.input_size=0", "input_size must be 1 or more, not 0"),
    ("model.logit_loss.weight=abc", "model.logit_loss: weight must be a finite number, not 'abc'"),
    ("model.task_loss.weight=None", "model.task_loss: weight must be a finite number, not None"),
    ("model.edges=[3]", "model.edges: an edge is a name or a dict, not 3"),
    ("model.edges=5", "model: edges must be a list, not 5"),
    ("model=3", "model: expected a dict, got 3"),
    # things that do not fit each other
    ("model.fusion.splice=S1-3+T5", "'T5' is out of range: the teacher has stages 1 to 4"),
    ("model.fusion.splice=S1-4", "it never switches"),
    ("model.fusion.splice=hello", "'hello' is not a piece"),
    ("model.student.num_classes=100", "class counts differ: model.student has 100, model.teacher has 10"),
    ("model.student.img_size=64", "cannot take images of 32x32 pixels"),
    ("model.edges=[teacher_to_studnt]", "no model 'studnt'"),
    ("model.logit_loss.gamma=-1", "gamma must be above 0"),
    ("model.teacher.checkpoint=embedded:convnext", "nothing of that name is shipped"),
    ("model.teacher.checkpoint=/nowhere/t.pth", "'/nowhere/t.pth': no such file"),
    ("device=cuda:99", "this machine has no CUDA device 99"),
    ("device=tpu", "not a device"),
    ("load_from=/nowhere.pth", "load_from: '/nowhere.pth': no such file"),
    # malformed options
    ("model", "write key=value"),
    ("=3", "write key=value"),
    ("a=(1,2", "brackets do not match"),
    ("model.student.name.x=3", "model.student.name is 'resmlp_s4_patch4_32', it has nothing below it"),
]


@pytest.mark.parametrize(("option", "reason"), OPTIONS, ids=[o for o, _ in OPTIONS])
def test_a_wrong_option_is_one_line(train, option: str, reason: str) -> None:  # type: ignore[no-untyped-def]
    code, lines = train(FLAGSHIP, "--check", "--cfg-options", option)
    assert code == 2
    assert len(lines) == 1 and reason in lines[0] and "Traceback" not in lines[0], lines


FILES = [
    ("model = dict(\n", "was never closed"),
    ("x = 1 / 0\n", "ZeroDivisionError"),
    ("_base_ = 'nowhere.py'\n", "nowhere.py"),
    (BASE + "train_cfg = 3\n", "train_cfg"),
    (BASE + "optim_wraper = dict()\n", "did you mean 'optim_wrapper'"),
    (BASE + "custom_imports = dict(imports=['no_such_plugin'])\n", "no_such_plugin"),
    (BASE + "test_evaluator = None\n", "test_dataloader, test_cfg and test_evaluator: set all three or none"),
    ("import os\nmodel = dict()\n", "lazy config"),
    ("model = dict(type='Distiller')\n", "train_dataloader is missing"),
    (BASE + "model_wrapper_cfg = dict(type='MMFullyShardedDataParallel')\n", "FSDP and DeepSpeed are not supported"),
    (BASE + "strategy = dict(type='DeepSpeedStrategy')\n", "--launcher sets up DistributedDataParallel"),
    (BASE + "runner_type = 'FlexibleRunner'\n", "there is one runner here, DistillRunner"),
    (
        BASE + "visualizer = dict(type='Visualizer', vis_backends=[dict(type='WandVisBackend')])\n",
        "visualizer.vis_backends.0.type: no vis_backend 'WandVisBackend'; did you mean 'WandbVisBackend'",
    ),
    (BASE + "ema = dict(decay=1.5)\n", "ema: decay must be in [0, 1), not 1.5"),
    (BASE + "cka = dict(images=100)\n", "cka: batch_size must be from 4 to images, not 256 of 100"),
    (BASE + "cka = dict(image=100)\n", "cka: unknown key 'image'; did you mean 'images'"),
    (BASE + "compile = 'fast'\n", "compile must be True, False or torch.compile's arguments, not 'fast'"),
    (BASE + "compile = dict(mod='default')\n", "compile: unknown key 'mod'; did you mean 'mode'"),
    (BASE + "channels_last = 1\n", "channels_last must be True or False, not 1"),
    (BASE + "reference = dict(top=70.0, source='x')\n", "reference: unknown key 'top'; did you mean 'top1'"),
    (BASE + "pairs = dict(a_b=dict())\n", "methods: expected a dict of dicts by name"),
]


@pytest.mark.parametrize(("text", "reason"), FILES, ids=[r for _, r in FILES])
def test_a_wrong_file_is_named_with_what_is_wrong(train, tmp_path: Path, text: str, reason: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "mine.py"
    path.write_text(text)
    code, lines = train(path, "--check")
    assert code == 2 and any(reason in line for line in lines), lines
    assert all(line.startswith("error: ") and "mine.py" in line for line in lines)


def test_a_missing_config_names_its_neighbours(train) -> None:  # type: ignore[no-untyped-def]
    code, lines = train(FLAGSHIP.with_name("fbt_convnext_resmpl.py"))
    assert code == 2 and len(lines) == 1 and "did you mean 'fbt_convnext_resmlp.py'" in lines[0]


@pytest.mark.parametrize("args", [("--lanucher", "none"), ("--seed", "x"), ("--amp", "fp8"), ("--launcher", "ssh")])
def test_wrong_arguments_are_one_line(train, args: tuple[str, str]) -> None:  # type: ignore[no-untyped-def]
    code, lines = train(FLAGSHIP, *args)
    assert code == 2 and len(lines) == 1


def test_a_matrix_wants_a_cell_and_a_plain_config_wants_none(train) -> None:  # type: ignore[no-untyped-def]
    matrix = ROOT / "configs" / "cifar100.py"
    wrong = {
        (matrix,): "it is a matrix: say which run, with --pair",
        (
            matrix,
            "--pair",
            "swin_resnet18",
            "--method",
            "fbt",
        ): "no pair 'swin_resnet18'; did you mean 'swin-t_resnet18'",
        (matrix, "--pair", "swin-t_resnet18", "--method", "fbd"): "no method 'fbd'; did you mean",
        (FLAGSHIP, "--pair", "swin-t_resnet18"): "drop --pair and --method",
    }
    for args, reason in wrong.items():
        code, lines = train(*args)
        assert code == 2 and len(lines) == 1 and reason in lines[0], lines


def test_all_errors_of_a_config_come_together(train) -> None:  # type: ignore[no-untyped-def]
    wrong = ["model.logit_loss.gama=1", "model.fusion.splice=S1-4", "train_cfg.max_epoch=1", "device=tpu"]
    code, lines = train(FLAGSHIP, "--check", "--cfg-options", *wrong)
    assert code == 2 and len(lines) == 4, lines


def test_what_cannot_be_held_in_memory_is_refused(train) -> None:  # type: ignore[no-untyped-def]
    options = ["in_memory=True", "num_workers=2", "dataset.transforms.1.type=ColorJitter"]
    code, lines = train(FLAGSHIP, "--check", "--cfg-options", *(f"train_dataloader.{option}" for option in options))
    assert code == 2 and len(lines) == 2, lines
    assert lines[0].endswith("in_memory=True has no worker processes and collates nothing; drop num_workers")
    assert "train_dataloader.dataset.transforms[1]: in_memory=True augments whole batches" in lines[1]
    folder = ["in_memory=True", "dataset.type=ImageFolder", "dataset.split=val", "dataset.root=."]
    code, lines = train(FLAGSHIP, "--check", "--cfg-options", *(f"val_dataloader.{option}" for option in folder))
    assert code == 2 and "val_dataloader: in_memory=True: ImageFolder is not held in memory" in lines[0], lines


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "truncated, or not a checkpoint"),
        (b"PK\x03\x04 half a zip", "truncated, or not a checkpoint"),
        ({"weights": [1, 2]}, "no state dict"),
        ({"conv.weight": torch.zeros(1)}, "is it another model's?"),
        (
            {"head.fc.weight": torch.zeros(100, 208)},
            "head.fc.weight is (100, 208) in the file and (10, 208) in the model",
        ),
    ],
)
def test_a_foreign_teacher_is_refused(train, tmp_path: Path, content: object, reason: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "teacher.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    code, lines = train(FLAGSHIP, "--check", "--cfg-options", f"model.teacher.checkpoint={path}")
    assert code == 2 and len(lines) == 1 and reason in lines[0], lines


def test_code_in_a_checkpoint_is_never_run(train, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    class Evil:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return os.mkdir, (str(tmp_path / "pwned"),)

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    code, lines = train(FLAGSHIP, "--check", "--cfg-options", f"model.teacher.checkpoint={tmp_path / 'evil.pth'}")
    assert code == 2 and "not loaded" in lines[0]
    assert not (tmp_path / "pwned").exists()


def test_resume_with_nothing_to_resume_does_not_start_over(train, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, lines = train(FLAGSHIP, "--work-dir", tmp_path / "run", "--resume")
    assert code == 2 and len(lines) == 1 and "no checkpoint in" in lines[0]
    code, lines = train(FLAGSHIP, "--work-dir", tmp_path / "run", "--resume", tmp_path / "gone.pth")
    assert code == 2 and len(lines) == 1 and "no such file" in lines[0]


def test_debug_shows_where_it_came_from() -> None:
    args = [sys.executable, "tools/train.py", "nowhere.py"]
    debug = subprocess.run(args, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "FBT_DEBUG": "1"})
    assert "Traceback" in debug.stderr


def test_help_has_examples_and_does_not_wait_for_the_engine() -> None:
    code = (
        "import sys, runpy; sys.argv = ['train.py', '--help']\n"
        "try: runpy.run_path('tools/train.py', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "assert 'mmengine.runner' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout and "configs/fbt_convnext_resmlp.py" in done.stdout
