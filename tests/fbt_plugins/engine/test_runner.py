"""Runs from their plan to the student that others load.

Then: The benchmark's bare loop does a run's arithmetic, its figures are whole, and a step waits for no device.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import CNN, RESMLP, VIT
from PIL import Image
from runs import TINY, Build, curve, run
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from fbt_plugins import ARCHITECTURES, FBTError, load_student
from fbt_plugins.config.loading import Arguments, load_config
from fbt_plugins.data import FashionMNISTMini
from fbt_plugins.engine import benchmark
from fbt_plugins.engine.benchmark import PARTS, BareLoop
from fbt_plugins.engine.checkpoints.files import find_resume
from fbt_plugins.engine.finished.student import about_student, save_student
from fbt_plugins.engine.plan import Plan
from fbt_plugins.engine.runner import DistillRunner
from fbt_plugins.errors import ConfigError


def close(a: DistillRunner, b: DistillRunner) -> None:
    """The same losses but for rounding, and weights as near as AdamW leaves them."""
    losses = [
        [{k: v for k, v in r.items() if k.startswith("train/") and "lr" not in k} for r in curve(x)] for x in (a, b)
    ]
    for first, second in zip(*losses, strict=True):
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert value == pytest.approx(second[name], rel=1e-2, abs=1e-3), name


@pytest.mark.slow
def test_compiled_losses_are_the_same_losses(config: Build) -> None:
    options = {"train_cfg.max_epochs": 1, "val_dataloader": None, "val_cfg": None, "val_evaluator": None}
    compiled = run(config("compiled", **options, compile=dict(backend="aot_eager")))
    close(run(config("plain", **options)), compiled)
    assert "_orig_mod" not in " ".join(compiled.model.state_dict())


@pytest.mark.slow
def test_inductor_computes_the_same_losses(config: Build) -> None:
    close(run(config("plain")), run(config("compiled", compile=True)))


def test_what_cannot_be_compiled_ends_in_one_line(config: Build) -> None:
    with pytest.raises(FBTError, match=r"compile: it fails \(.*\); set compile=None; nothing was saved yet"):
        run(config("run", compile=dict(backend="no_such_backend")))


def test_channels_last_reaches_all_models_and_the_images(config: Build) -> None:
    models = {
        "model.student": dict(type="timm", name="resnet10t", num_classes=10, layers=(1, 1, 1, 1), channels=(8, 8, 8, 8))
    }
    last = DistillRunner.from_cfg(config("last", **models, channels_last=True))
    seen = []
    for model in last.model.models.values():
        model.net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        model.stages[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    last.train()
    weights = [p for m in last.model.models.values() for p in m.parameters() if p.ndim == 4 and p.shape[1:] > (1, 1, 1)]
    assert weights and seen
    for tensor in (*weights, *(x for x in seen if not x.is_meta)):  # shapes are found on copies without weights
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    close(run(config("plain", **models)), last)
    assert not Path(last.work_dir, "earlier_1").exists()


def test_a_run_leaves_everything_behind(config: Build, whole: DistillRunner) -> None:
    folder = Path(whole.work_dir)
    summary = json.loads((folder / "summary.json").read_text())
    for key in ("student_top1", "teacher_top1", "fusion_top1"):
        assert 0 <= summary[key] <= 100
    assert summary["split"] == "test" and summary["seed"] == 3 and summary["versions"]["torch"] == torch.__version__
    assert 1 <= summary["best_epoch"] <= 3
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["iter"] for r in records if "train/loss" in r] == [2, 4, 6, 8, 10, 12]
    assert {"val/student_top1", "val/teacher_top1", "val/fusion_top1"} <= records[-1].keys() | records[-2].keys()
    assert {
        f"train/{e}/{s}" for e in ("teacher_to_student", "fusion_to_student") for s in ("feature", "logit")
    } <= records[0].keys()
    again = load_config(folder / "config.py")
    assert again.model.to_dict() == config().model.to_dict()


def test_the_student_file_is_a_plain_timm_model(whole: DistillRunner) -> None:
    path = Path(whole.work_dir) / "student.safetensors"
    student = timm.create_model(
        "resmlp_s4_patch4_32", num_classes=10, embed_dim=16, num_blocks=4, checkpoint_path=str(path)
    ).eval()
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(student(images), whole.model.student.net.eval()(images))
    assert all(not k.startswith("net.") for k in load_file(path))


def test_the_student_file_can_teach(config: Build, whole: DistillRunner) -> None:
    path = Path(whole.work_dir) / "student.safetensors"
    taught = config("second", **{"model.teacher.name": "resmlp_s4_patch4_32"})
    taught.model.teacher = dict(RESMLP, checkpoint=str(path))
    teacher = DistillRunner.from_cfg(taught).model.teacher
    assert torch.equal(teacher.net.head.weight, load_file(path)["head.weight"])


def test_checkpoints_are_plain_and_hold_no_teacher(whole: DistillRunner) -> None:
    path, checkpoint = find_resume(Path(whole.work_dir), 4)
    assert path.name == "epoch_3.pth"  # read with weights_only=True
    assert {"meta", "state_dict", "optimizer", "param_schedulers"} <= checkpoint.keys()
    assert not any("teacher" in k and "edges" not in k for k in checkpoint["state_dict"])
    weights = sum(v.numel() for v in checkpoint["state_dict"].values())
    own = sum(v.numel() for v in whole.model.state_dict().values())
    assert weights == own
    assert len(list(Path(whole.work_dir).glob("*.pth"))) == 2  # the newest and the best
    assert not list(Path(whole.work_dir).glob(".*.tmp"))


@pytest.mark.parametrize("student", [VIT, CNN], ids=lambda c: c["name"])
def test_a_run_starts_from_the_weights_that_it_was_given(config: Build, tmp_path: Path, student: dict) -> None:
    """mmengine's Runner would call timm's init_weights here."""
    torch.manual_seed(11)
    net = timm.create_model(
        **{"model_name": student["name"]}, **{k: v for k, v in student.items() if k not in ("type", "name")}
    )
    torch.save(net.state_dict(), tmp_path / "pretrained.pth")
    settings = config()
    settings.model.student = dict(student, checkpoint=str(tmp_path / "pretrained.pth"))
    settings.optim_wrapper.optimizer = dict(type="SGD", lr=0.0)
    settings.train_cfg.max_epochs = 1
    runner = run(settings)
    for name, value in net.named_parameters():
        assert torch.equal(value, dict(runner.model.student.net.named_parameters())[name]), name


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains_on_a_cpu(config: Build, precision: str) -> None:
    runner = run(config(**{"optim_wrapper.precision": precision, "train_cfg.max_epochs": 1}))
    assert all(torch.isfinite(p).all() and p.dtype == torch.float32 for p in runner.model.parameters())


def test_plain_training_makes_a_teacher(config: Build) -> None:
    options = {f"model.{k}": None for k in ("teacher", "fusion", "feature_loss", "logit_loss")}
    runner = run(config(**options, **{"model.edges": [], "train_cfg.max_epochs": 1}))
    summary = json.loads((Path(runner.work_dir) / "summary.json").read_text())
    assert "student_top1" in summary and "teacher_top1" not in summary


def test_iterations_instead_of_epochs(config: Build) -> None:
    settings = config()
    settings.train_cfg = dict(by_epoch=False, max_iters=6, val_interval=3)
    settings.param_scheduler = [dict(type="ConstantLR", factor=1.0, by_epoch=False)]
    settings.default_hooks.checkpoint.update(by_epoch=False, interval=3)
    runner = run(settings)
    assert runner.iter == 6 and (Path(runner.work_dir) / "iter_6.pth").is_file()


def test_a_teacher_near_chance_is_a_loud_warning(config: Build, capsys: pytest.CaptureFixture[str]) -> None:
    run(config(**{"train_cfg.max_epochs": 1}))
    out = capsys.readouterr().out
    assert "THE TEACHER IS NEAR CHANCE" in out and out.index("NEAR CHANCE") < out.index("epoch 1/1")


# ---- plan -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text(TINY)
    return Path("tiny.py")


def test_arguments_are_put_over_the_config(tiny: Path) -> None:
    arguments = Arguments(
        "there", resume="auto", device="cpu", seed=7, amp="fp16", compile=True, command="what I typed"
    )
    config = Plan.of(tiny, {"randomness.seed": 5, "train_cfg.max_epochs": 1}, arguments=arguments).config
    assert (config.work_dir, config.resume, config.device, config.command) == ("there", "auto", "cpu", "what I typed")
    assert (config.randomness.seed, config.optim_wrapper.precision, config.compile) == (7, "fp16", True)
    assert (config.train_cfg.max_epochs, config.launcher) == (1, "none")


def test_without_arguments_the_configs_values_stay(tiny: Path) -> None:
    config = Plan.of(tiny, {"compile": {"mode": "default"}}).config
    assert (config.work_dir, config.device, config.randomness.seed) == ("work_dirs/tiny", "cpu", 3)
    assert config.compile == {"mode": "default"} and "command" not in config and "resume" not in config
    compiled = Plan.of(tiny, {"compile": {"mode": "default"}, "work_dir": "mine"}, arguments=Arguments(compile=True))
    assert compiled.config.compile == {"mode": "default"} and compiled.config.work_dir == "mine"


def test_it_says_what_would_run_and_touches_nothing(tiny: Path) -> None:
    plan = Plan.of(tiny)
    assert [line.split(":")[0] for line in plan.lines()] == [
        "student resmlp_s4_patch4_32",
        "teacher convnext_atto",
        "fusion",
        "splice auto is T1-3+S4",
    ]
    assert all(line.endswith("classes 10") for line in plan.lines()[:2])
    assert {parameter.device.type for parameter in plan.distiller.parameters()} == {"meta"}
    assert list(Path().iterdir()) == [tiny]


def test_a_plan_is_never_of_a_wrong_config(tiny: Path) -> None:
    with pytest.raises(ConfigError, match=r"^tiny.py: unknown key 'wrong'"):
        Plan.of(tiny, {"wrong": 1})


# ---- student --------------------------------------------------------------------------------------------------------


def test_a_loaded_student_is_as_good_as_its_summary_says(whole: DistillRunner) -> None:
    """On images as they are stored, 28x28: the run's transforms pad them to 32x32."""
    folder = Path(whole.work_dir)
    model, transform = load_student(folder / "student.safetensors")
    stored = FashionMNISTMini("test")
    samples = [stored[i] for i in range(20)]  # the run tests as many
    inputs = torch.stack([transform(sample["inputs"]) for sample in samples])
    assert samples[0]["inputs"].shape[1:] == (28, 28) and inputs.shape == (20, 3, 32, 32)
    with torch.no_grad():
        logits = model(inputs)
    top1 = 100 * sum(int(a == b["labels"]) for a, b in zip(logits.argmax(1).tolist(), samples, strict=True)) / 20
    assert not model.training and top1 == json.loads((folder / "summary.json").read_text())["student_top1"]
    picture = Image.fromarray(samples[0]["inputs"].permute(1, 2, 0).numpy())
    assert torch.equal(transform(picture), inputs[0]) and torch.equal(transform(picture.convert("L")), inputs[0])


def test_the_file_says_what_it_needs_and_nothing_of_where_its_weights_came_from() -> None:
    told = about_student(dict(RESMLP, pretrained=True, checkpoint="x.pth", head="new"), None)
    assert told == {"config": RESMLP}


def test_a_student_that_nobody_tested_and_its_own_input_size(tmp_path: Path) -> None:
    model = ARCHITECTURES.build(dict(RESMLP, mean=(0.5,) * 3, std=(0.25,) * 3, img_size=48, input_size=48))
    save_student(model, tmp_path / "s.safetensors", {"image_size": (24, 24)})
    net, transform = load_student(tmp_path / "s.safetensors")
    white = transform(torch.full((3, 100, 100), 255, dtype=torch.uint8))
    assert white.shape == (3, 48, 48) and torch.allclose(white, torch.tensor(2.0))
    with torch.no_grad():
        assert torch.equal(net(white[None]), model.net.eval()(white[None]))


def test_what_is_no_students_file_is_one_line(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(FBTError, match="it does not say which model it is: not a student of a run"):
        load_student(tmp_path / "a.safetensors")


# ---- benchmark ------------------------------------------------------------------------------------------------------


SCRATCH = {f"model.{key}": None for key in ("teacher", "fusion", "feature_loss", "logit_loss")} | {"model.edges": []}
CASES = {
    "fbt": {},
    "splice that starts in the teacher, bf16": {
        "model.fusion.splice": "T1-3+S4",
        "optim_wrapper.precision": "bf16",
    },
    "a splice drawn in each step, mixup": {
        "model.fusion.splice": ["S1-3+T4", "S1-2+T3-4"],
        "data_preprocessor": dict(mixup_alpha=0.8),
    },
    "no teacher": SCRATCH,
    "teacher cache": {"teacher_cache.views": 2},
}


@pytest.fixture
def ready(config: Build, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Builds a run up to its first step: the runner, and a batch as its hooks leave it."""

    def build(name: str, **options: Any) -> tuple[DistillRunner, dict[str, torch.Tensor]]:
        found: list[DistillRunner] = []
        monkeypatch.setattr(benchmark, "_measure", lambda runner, *rest: found.append(runner) or {})
        benchmark.benchmark(config(name, **options))
        runner = found[0]
        runner.optim_wrapper.period = len(runner.train_dataloader)
        runner.call_hook("before_train")
        runner.call_hook("before_train_epoch")
        runner.model.train()
        batch = next(iter(runner.train_dataloader))
        runner.call_hook("before_train_iter", batch_idx=0, data_batch=batch)
        runner.model.data_preprocessor.step_seed = 0
        return runner, batch

    return build


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_the_bare_loop_makes_the_same_update(ready: Any, options: dict[str, Any]) -> None:
    (ours, batch), (plain, same) = ready("ours", **options), ready("plain", **options)
    before = {name: p.detach().clone() for name, p in ours.model.named_parameters()}
    torch.testing.assert_close(batch, same, rtol=0, atol=0)
    ours.model.train_step(batch, ours.optim_wrapper)
    parts: list[str] = []
    bare = BareLoop(plain)
    bare.step(same, parts.append)
    assert tuple(parts) == PARTS
    theirs = dict(plain.model.named_parameters())
    for name, parameter in ours.model.named_parameters():
        torch.testing.assert_close(
            theirs[name], parameter, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}"
        )
        assert torch.equal(theirs[name], before[name]) == torch.equal(parameter, before[name])
    assert bare.optimizer.param_groups[0]["params"][0] is plain.optim_wrapper.optimizer.param_groups[0]["params"][0]


@pytest.mark.parametrize(
    "options", [{}, {**SCRATCH, "train_cfg": dict(by_epoch=False, max_iters=99)}], ids=["fbt", "iter"]
)
def test_the_figures_of_a_benchmark(config: Build, options: dict[str, Any]) -> None:
    found = benchmark.benchmark(config("run", **options), rounds=3, after=7)
    times = found["milliseconds"]
    distils = not options
    gone = set() if distils else {"fusion"}
    assert {"data", *PARTS, "engine", "bare step", "engine step", "whole"} - gone <= times.keys() | {"teacher"}
    assert all(0 <= v["low"] <= v["median"] <= v["high"] for name, v in times.items() if name != "engine")
    assert found["batch_size"] == 8 and found["after_iterations"] == 7 and found["peak_memory_mb"] > 0
    assert ("fusion" in found) == distils
    assert found["images_per_second"] == pytest.approx(8e3 / times["whole"]["median"])
    for part in ("student", "losses", "backward", "optimizer"):
        assert 0 < times[part]["median"] < times["bare step"]["median"]


def test_what_cannot_be_measured_is_refused(config: Build) -> None:
    with pytest.raises(ConfigError, match="accumulative_counts: a benchmark is of steps that update; set it to 1"):
        benchmark.benchmark(config("run", **{"optim_wrapper.accumulative_counts": 2}))
    distributed = config("run")
    distributed.launcher = "pytorch"
    with pytest.raises(ConfigError, match="a benchmark is of one process"):
        benchmark.benchmark(distributed)


class Reads(TorchDispatchMode):
    """Counts what would wait for a GPU: a number that is read, or a tensor whose shape depends on numbers."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in self.WAITING:
            self.found[name] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [{}, {"ema.decay": 0.9}, {"optim_wrapper.clip_grad": None}])
def test_a_step_reads_nothing_from_the_device_between_two_records(ready: Any, options: dict[str, Any]) -> None:
    fused = {"optim_wrapper.optimizer.fused": True, "train_dataloader.in_memory": True}  # as it is on a GPU
    runner, _ = ready("run", **fused, **options, **{"default_hooks.progress.interval": 50})
    runner.optim_wrapper._masked_on_device = True
    batches = list(runner.train_dataloader)
    with Reads() as reads:
        for index, batch in enumerate(batches):
            runner.train_loop.run_iter(index, batch)
        assert not reads.found
        runner.check_losses(len(batches))
        losses = runner.model.train_step(batches[0], runner.optim_wrapper)
        assert not reads.found and losses["loss"].item() > 0
    assert reads.found == {"_local_scalar_dense": 1}  # what counts is not blind


def test_a_fused_optimizer_makes_no_update_after_a_nan_and_nobody_has_to_look(ready: Any) -> None:
    runner, batch = ready("run", **{"optim_wrapper.optimizer.fused": True})
    wrapper = runner.optim_wrapper
    wrapper._masked_on_device = True
    runner.model.train_step(batch, wrapper)
    before = {name: p.detach().clone() for name, p in runner.model.named_parameters()}
    wrapper.update_params(sum(p.sum() for p in runner.model.parameters() if p.requires_grad) * float("nan"))
    runner.model.train_step(batch, wrapper)
    assert float(wrapper.trusted()) == 0
    for name, parameter in runner.model.named_parameters():
        assert torch.equal(parameter, before[name]), name
