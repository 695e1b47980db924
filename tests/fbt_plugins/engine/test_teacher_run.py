"""Teachers: made where they are missing, and published."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CONVNEXT, RESMLP
from mmengine.config import Config
from runs import TINY, Killed
from safetensors.torch import load_file

from fbt_plugins import ARCHITECTURES
from fbt_plugins.config.loading import default_work_dir, load_config
from fbt_plugins.engine.check import check_config
from fbt_plugins.engine.finished.student import save_student
from fbt_plugins.engine.hooks.publish_teacher import embed, publish
from fbt_plugins.engine.plan import Plan
from fbt_plugins.engine.runner import DistillRunner
from fbt_plugins.engine.teacher_run import TeacherRun
from fbt_plugins.errors import ConfigError, FBTError, Interrupted
from fbt_plugins.files import locked
from fbt_plugins.models.staged import StagedModel
from fbt_plugins.models.weights import find_weights

FILE = "teachers/conv.safetensors"
TEACHER = f"""
_base_ = "student.py"
model = dict(
    student=dict({CONVNEXT}, checkpoint="of_7_classes.safetensors", head="new"),
    teacher=None, fusion=None, edges=[], feature_loss=None, logit_loss=None,
)
train_cfg = dict(by_epoch=True, max_epochs=2)
teacher_run = None
publish = {FILE!r}
"""
STUDENT = (
    TINY
    + f"""
model["teacher"]["checkpoint"] = {FILE!r}
train_cfg = dict(by_epoch=True, max_epochs=1)
teacher_run = dict(config="{{{{ fileDirname }}}}/teacher.py", if_missing="train")
"""
)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    """Loads the student's config, or the teacher's, in a folder where both and the pretrained weights are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "student.py").write_text(STUDENT)
    (tmp_path / "teacher.py").write_text(TEACHER)
    save_student(ARCHITECTURES.build(dict(CONVNEXT, num_classes=7)), tmp_path / "of_7_classes.safetensors", {})

    def load(name: str = "student", **options: Any) -> Config:
        loaded = load_config(tmp_path / f"{name}.py", {k.replace("__", "."): v for k, v in options.items()})
        loaded.launcher = "none"
        loaded.work_dir = default_work_dir(f"{name}.py", loaded)
        return loaded

    return load


def dying(monkeypatch: pytest.MonkeyPatch, iteration: int, act: Callable[[], None]) -> None:
    """Something happens at the beginning of an iteration of every run from now on."""
    build = DistillRunner.from_cfg

    def from_cfg(cfg: Config) -> DistillRunner:
        runner = build(cfg)
        step = runner.model.train_step

        def train_step(*args: Any, **kwargs: Any) -> Any:
            if runner.iter == iteration:
                act()
            return step(*args, **kwargs)

        runner.model.train_step = train_step
        return runner

    monkeypatch.setattr(DistillRunner, "from_cfg", from_cfg)


def die() -> None:
    raise Killed


def test_a_missing_teacher_is_made_first(config: Callable[..., Config], capsys: pytest.CaptureFixture[str]) -> None:
    first = config()
    plan = Plan.of_config(first)
    assert not Path("teachers").exists()  # a check trains nothing
    plan.run()
    out = capsys.readouterr().out
    assert f"teacher {FILE} is missing: trained first, in teachers/conv (fbt train teacher.py)" in out
    assert "head    student convnext_atto: a new one of 10 classes, not that of its weights" in out
    assert out.index(f"teacher  {FILE}, ") < out.rindex("before the first step")

    entry = json.loads(Path("teachers/manifest.json").read_text())["conv"]
    top1 = json.loads(Path("teachers/conv/summary.json").read_text())["student_top1"]
    assert entry["accuracy"] == {"top1": top1, "split": "test"} and entry["recipe"] == "fbt train teacher.py"
    assert (entry["seed"], entry["name"], len(entry["mean"])) == (3, "convnext_atto", 3) and entry["versions"]["torch"]
    pretrained, made = load_file("of_7_classes.safetensors"), load_file(FILE)
    assert made["head.fc.weight"].shape[0] == 10 and made.keys() == pretrained.keys()

    second = config(randomness__seed=3)
    second.work_dir = "second"
    Plan.of_config(second).run()
    assert "missing" not in capsys.readouterr().out
    students = [load_file(Path(run.work_dir) / "student.safetensors") for run in (first, second)]
    assert all(torch.equal(value, students[1][name]) for name, value in students[0].items())


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched, pytest.raises(Killed):
        dying(patched, 5, die)
        Plan.of_config(config()).run()
    assert not Path(FILE).exists()
    Plan.of_config(config(model__task_loss__weight=2.0)).run()
    assert "resume  teachers/conv/epoch_1.pth (4 of 8 iterations done)" in capsys.readouterr().out
    assert Path(FILE).is_file() and Path("work_dirs/student/summary.json").is_file()


def test_a_stop_says_that_the_same_command_goes_on(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    dying(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(
        Interrupted, match=r"saved teachers/conv/epoch_0_iter_2.pth; the same command goes on$"
    ) as stopped:
        Plan.of_config(config()).run()
    assert stopped.value.exit_code == 143


def test_what_stops_the_teachers_run_says_whose_it_is(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    dying(monkeypatch, 1, full)
    with pytest.raises(FBTError, match=r"^teacher_run: fbt train teacher.py: No space left on device"):
        Plan.of_config(config()).run()


def test_who_comes_second_waits(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another process, here a thread with a lock of its own, makes the teacher meanwhile."""
    ours = []
    monkeypatch.setattr(DistillRunner, "from_cfg", lambda cfg: ours.append(cfg) or _Nothing())
    line, has_it, waited = f"teacher {FILE} is being made by another process", threading.Event(), threading.Event()
    monkeypatch.setattr("fbt_plugins.files.say", lambda said: (print(said), waited.set()))

    def other() -> None:
        with locked(Path("teachers/.conv.lock"), "", wait=True):
            has_it.set()
            waited.wait(10)
            save_student(ARCHITECTURES.build(CONVNEXT), Path(FILE), {})

    thread = threading.Thread(target=other)
    thread.start()
    has_it.wait(10)
    with pytest.raises(FBTError, match=f"^{line}$"):
        Plan.of_config(config("teacher")).run()
    Plan.of_config(config()).run()
    thread.join()
    assert f"{line}: waiting for it" in capsys.readouterr().out
    assert [cfg.get("publish") for cfg in ours] == [None]  # the student's run alone


class _Nothing:
    """Stands for a run."""

    def train(self) -> None:
        pass


WRONG = [
    (
        dict(teacher_run__if_missing="refuse"),
        f"model.teacher: checkpoint '{FILE}': no such file; 'fbt train teacher.py' makes it, "
        "as --cfg-options teacher_run.if_missing=train does on the way",
    ),
    (dict(teacher_run__if_missing="trian"), "teacher_run: if_missing cannot be 'trian'; did you mean 'train'?"),
    (dict(teacher_run__confg="x.py"), "teacher_run: unknown key 'confg'; did you mean 'config'?"),
    (
        dict(teacher_run__config="teachr.py"),
        "teacher_run: config 'teachr.py': no such file; did you mean 'teacher.py'?",
    ),
    (dict(teacher_run__pair="a_b"), "teacher_run: config teacher.py: it is no matrix"),
    (
        dict(model__teacher__checkpoint="x.safetensors"),
        f"checkpoint 'x.safetensors': no such file, and 'fbt train teacher.py' makes '{FILE}'",
    ),
    (dict(model__teacher__depths=(1, 1, 2, 1)), "teacher_run: what it makes does not fit model.teacher: "),
    (dict(publish="teacher.pth"), "publish: a file NAME.safetensors, not 'teacher.pth'"),
]


@pytest.mark.parametrize(("options", "reason"), WRONG, ids=[next(iter(options)) for options, _ in WRONG])
def test_what_is_wrong_is_one_line(config: Callable[..., Config], options: dict[str, Any], reason: str) -> None:
    wrong = config(**{"teacher_run__config": "teacher.py", **options})
    with pytest.raises(ConfigError) as caught:
        check_config(wrong)
    assert reason in caught.value.problems[0]
    assert len([line for line in caught.value.problems if "no such file; shipped" not in line]) == 1


def test_several_processes_do_not_make_it_on_the_way(config: Callable[..., Config]) -> None:
    several = config()
    several.launcher = "pytorch"
    with pytest.raises(ConfigError, match=r"makes it: run that first, several processes do not make it on the way$"):
        check_config(several)


def test_a_mistake_in_the_teachers_config_is_found_before_anything_runs(config: Callable[..., Config]) -> None:
    with Path("teacher.py").open("a") as file:
        file.write("optim_wraper = dict()\nval_dataloader = val_cfg = val_evaluator = None\n")
        file.write("test_dataloader = test_cfg = test_evaluator = None\n")
    with pytest.raises(ConfigError) as caught:
        check_config(config())
    first, second = caught.value.problems
    assert "teacher_run: " in first and "unknown key 'optim_wraper'" in first
    assert second.endswith("publish: a teacher's accuracy must be known; set val_dataloader or test_dataloader")


def test_a_run_that_makes_its_own_teacher_is_refused(config: Callable[..., Config]) -> None:
    with Path("student.py").open("a") as file:
        file.write(f"publish = {FILE!r}\n")
    with pytest.raises(ConfigError, match=r"student.py' needs the teacher that it makes, 'teachers/conv.safetensors'$"):
        check_config(config(teacher_run__config="student.py"))


def test_runs_that_make_each_others_teachers_are_refused(config: Callable[..., Config]) -> None:
    """teacher.py wants other.safetensors, whose config wants the teacher."""
    other = "teachers/other.safetensors"
    text = TEACHER.replace("teacher=None", f"teacher=dict({CONVNEXT}, checkpoint={other!r})")
    Path("teacher.py").write_text(text.replace("teacher_run = None", 'teacher_run = dict(config="other.py")'))
    swapped = text.replace(other, FILE).replace(f"publish = {FILE!r}", f"publish = {other!r}")
    Path("other.py").write_text(swapped.replace("teacher_run = None", 'teacher_run = dict(config="teacher.py")'))
    with pytest.raises(ConfigError, match=r"teacher.py' needs what it makes, by way of others: 'teachers/conv"):
        check_config(config())


def test_no_teacher_is_made_where_none_is_needed(config: Callable[..., Config]) -> None:
    scratch = dict(model__teacher=None, model__fusion=None, model__edges=[])
    check_config(config(**scratch, model__feature_loss=None, model__logit_loss=None))
    check_config(config(model__teacher__checkpoint=None, teacher_run__config="teacher.py"))


def test_the_command_names_a_cell() -> None:
    run = TeacherRun("configs/teachers/cifar100.py", pair="swin-t", method="finetune")
    assert run.command == "fbt train configs/teachers/cifar100.py --pair swin-t --method finetune"


# ---- publish teacher ------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path: Path) -> StagedModel:
    """The student of a run that has its files in the test's folder."""
    model = ARCHITECTURES.build(RESMLP)
    save_student(model, tmp_path / "student.safetensors", dict(classes=["a", "b"]))
    summary = dict(student_top1=91.5, split="test", seed=0, best_epoch=3, command="python tools/train.py toy.py")
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    return model


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shipped"
    monkeypatch.setattr("fbt_plugins.models.weights.embedded_folder", lambda: folder)
    monkeypatch.setattr("fbt_plugins.engine.hooks.publish_teacher.embedded_folder", lambda: folder)
    return folder


def test_a_run_becomes_a_teacher_found_by_name(tmp_path: Path, finished: StagedModel, shipped: Path) -> None:
    embed(tmp_path, "toy", "FASHION_MNIST=there python tools/train.py toy.py")
    entry = json.loads((shipped / "manifest.json").read_text())["toy"]
    assert entry["accuracy"] == dict(top1=91.5, split="test") and entry["recipe"].startswith("FASHION_MNIST=there")
    assert entry["parameters"] == sum(p.numel() for p in finished.parameters())
    again = ARCHITECTURES.build(dict(RESMLP, checkpoint="embedded:toy"))
    assert torch.equal(again.net.head.weight, finished.net.head.weight)


def test_an_unfinished_run_is_refused(tmp_path: Path, shipped: Path) -> None:
    with pytest.raises(FBTError, match="not the folder of a finished run"):
        embed(tmp_path, "toy")


def test_a_large_one_is_not_shipped(
    tmp_path: Path, finished: StagedModel, shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fbt_plugins.engine.hooks.publish_teacher.LIMIT", 1000)
    with pytest.raises(FBTError, match="bytes; a shipped teacher has less than 1,000"):
        embed(tmp_path, "toy")
    assert not shipped.exists()


def test_several_at_once_keep_each_others_entries(tmp_path: Path, finished: StagedModel) -> None:
    targets = [tmp_path / "teachers" / f"t{i}.safetensors" for i in range(12)]
    with ThreadPoolExecutor(12) as pool:
        entries = list(pool.map(lambda target: publish(tmp_path, target), targets))
    manifest = json.loads((tmp_path / "teachers" / "manifest.json").read_text())
    assert manifest == {target.stem: entry for target, entry in zip(targets, entries, strict=True)}
    assert manifest["t3"]["recipe"] == "python tools/train.py toy.py"
    assert all(find_weights(str(target)) == target for target in targets)


def test_a_file_that_is_not_its_entrys_is_refused(tmp_path: Path, finished: StagedModel) -> None:
    target = tmp_path / "teachers" / "toy.safetensors"
    publish(tmp_path, target)
    save_student(ARCHITECTURES.build(RESMLP), target, {})
    with pytest.raises(FBTError, match=r"not the file of its manifest.json \(sha256 differs\); put the right") as error:
        ARCHITECTURES.build(dict(RESMLP, checkpoint=str(target)))
    assert "\n" not in str(error.value)
    publish(tmp_path, target)
    ARCHITECTURES.build(dict(RESMLP, checkpoint=str(target)))


def test_a_manifest_of_something_else_is_none(tmp_path: Path, finished: StagedModel) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "an app", "student": 3}')
    ARCHITECTURES.build(dict(RESMLP, checkpoint=str(tmp_path / "student.safetensors")))
    (tmp_path / "manifest.json").write_text('{"student": ')
    with pytest.raises(FBTError, match=r"manifest.json: it is no JSON, or damaged"):
        ARCHITECTURES.build(dict(RESMLP, checkpoint=str(tmp_path / "student.safetensors")))


def test_where_nothing_can_be_written_is_one_line(tmp_path: Path, finished: StagedModel) -> None:
    with pytest.raises(FBTError, match="it cannot be locked"):
        publish(tmp_path, tmp_path / "summary.json" / "toy.safetensors")
