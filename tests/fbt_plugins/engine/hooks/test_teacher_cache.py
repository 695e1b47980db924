"""The teacher cache: what it holds, when it is refused, and that a run with it is a run."""

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CONVNEXT, RESMLP
from mmengine.config import Config
from mmengine.registry import DATASETS

from fbt_plugins.config.loading import load_config
from fbt_plugins.data.image_dataset import InMemoryDataset
from fbt_plugins.engine.check import check_config
from fbt_plugins.engine.hooks import teacher_cache
from fbt_plugins.engine.runner import DistillRunner
from fbt_plugins.errors import ConfigError, FBTError
from fbt_plugins.registry.registries import ARCHITECTURES

ROOT = Path(__file__).parents[4]
BASES = [str(ROOT / "configs" / "_base_" / name) for name in ("fbt.py", "adamw_cosine.py")]
CROP = [dict(type="RandomCrop", size=32, padding=4), dict(type="RandomHorizontalFlip")]
TINY = f"""
_base_ = {BASES}
model = dict(student={RESMLP}, teacher={CONVNEXT})
train_dataloader = dict(
    batch_size=8,
    dataset=dict(type="SmallImages", transforms={CROP}),
    sampler=dict(type="SeededSampler", shuffle=True),
)
train_cfg = dict(by_epoch=True, max_epochs=3)
param_scheduler = [dict(type="CosineAnnealingLR", T_max=3, end=3, convert_to_iter_based=True)]
device = "cpu"
default_hooks = dict(checkpoint=dict(save_best=None))
teacher_cache = dict(views=2)
"""


@DATASETS.register_module(force=True)
class SmallImages(InMemoryDataset):
    """24 images of noise, the first pixel of which is ``pixel``."""

    def __init__(self, transforms: Any = (), seed: int = 0, pixel: int = 0) -> None:
        images = torch.randint(256, (24, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        images[0, 0, 0] = pixel
        super().__init__([str(n) for n in range(10)], images, torch.arange(24) % 10, transforms, seed)


Make = Callable[..., Config]


@pytest.fixture
def config(tmp_path: Path) -> Make:
    """A run of nine steps with a teacher whose weights are a file."""
    torch.manual_seed(0)
    torch.save(ARCHITECTURES.build(CONVNEXT).net.state_dict(), tmp_path / "teacher.pth")

    def build(folder: str = "run", **options: Any) -> Config:
        (tmp_path / "tiny.py").write_text(TINY)
        loaded = load_config(
            tmp_path / "tiny.py", {"model.teacher.checkpoint": str(tmp_path / "teacher.pth"), **options}
        )
        loaded.work_dir = str(tmp_path / folder)
        return loaded

    return build


def run(config: Config) -> DistillRunner:
    check_config(config)
    runner = DistillRunner.from_cfg(config)
    runner.train()
    return runner


def caches(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "teacher_cache").iterdir())


def test_it_holds_what_the_teacher_knows_about_each_view(config: Make, tmp_path: Path) -> None:
    runner = run(config(**{"train_cfg.max_epochs": 1}))
    (folder,) = caches(tmp_path)
    assert folder.name.startswith("SmallImages-convnext_atto-")
    data = SmallImages(CROP)
    data.fix_views(2, seed=0)
    for view in (0, 1):
        images = torch.stack([data[view, position]["inputs"] for position in range(24)]) / 255
        known = runner.model.ask_teacher(images, {3})
        for part, expected in dict(features=known.features, logits=known.logits, stage_3=known.stages[3]).items():
            stored = torch.from_numpy(np.load(folder / f"{part}.npy")[view])
            torch.testing.assert_close(stored.float(), expected, rtol=1e-3, atol=1e-3)
    assert len(list(folder.glob("*.npy"))) == 3
    key = json.loads((folder / "key.json").read_text())
    assert key["views"] == 2 and key["precision"] == "float32" and key["teacher"]["name"] == "convnext_atto"


def test_the_teacher_never_sees_an_image_of_training_and_each_step_gets_its_own(config: Make) -> None:
    runner = DistillRunner.from_cfg(config())
    model, step, ran, views = runner.model, runner.model.train_step, [0, 0], []
    training = False

    def train_step(data: dict[str, Any], **kwargs: Any) -> Any:
        nonlocal training
        views.append(set(data["view"].tolist()))
        fresh = model.know(data["inputs"] / 255, {"teacher"})["teacher"]
        torch.testing.assert_close(data["teacher_logits"].float(), fresh.logits, rtol=1e-3, atol=1e-3)
        assert data["teacher_features"].dtype == torch.float16 and data["teacher_features"].shape == (8, 32)
        assert {n: (x.dtype, x.shape) for n, x in data["teacher_stages"].items()} == {3: (torch.float16, (8, 24, 2, 2))}
        training = True
        outputs = step(data, **kwargs)
        training = False
        return outputs

    for i, stage in enumerate((model.teacher.stages[0], model.teacher.stages[3])):
        stage.register_forward_hook(lambda *_, i=i: ran.__setitem__(i, ran[i] + training))
    model.train_step = train_step
    runner.train()
    assert ran == [0, 0]
    assert views == [{0}] * 3 + [{1}] * 3 + [{0}] * 3


def test_runs_share_it_and_it_says_so(config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(config("first"))
    out = capsys.readouterr().out
    assert "teacher cache: 2 fixed views per image instead of fresh augmentation (" in out and "built in" in out
    second = run(config("second"))
    assert "reused)" in capsys.readouterr().out
    for (name, a), (_, b) in zip(first.model.state_dict().items(), second.model.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    run(config("third", **{"randomness.seed": 7, "train_cfg.max_epochs": 1}))
    assert "reused)" in capsys.readouterr().out and len(caches(tmp_path)) == 1


def test_resumed_is_uninterrupted(config: Make) -> None:
    whole = run(config("whole"))
    broken = DistillRunner.from_cfg(config("broken"))
    step = broken.model.train_step

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if broken.iter == 7:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    broken.model.train_step = interrupted
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    resumed = run(config("broken", resume=True))
    for (name, a), (_, b) in zip(whole.model.state_dict().items(), resumed.model.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_views_are_fixed_before_a_worker_has_the_data(config: Make) -> None:
    settings = config(**{"train_dataloader.num_workers": 1, "train_dataloader.num_batch_per_epoch": 2})
    settings.train_cfg = dict(by_epoch=False, max_iters=2, val_interval=2)
    settings.param_scheduler = [dict(type="ConstantLR", factor=1.0, by_epoch=False)]
    assert run(settings).iter == 2


def test_it_is_of_the_runs_precision(config: Make, tmp_path: Path) -> None:
    runner = DistillRunner.from_cfg(config(**{"train_cfg.max_epochs": 0, "optim_wrapper.precision": "bf16"}))
    runner.train()
    (folder,) = caches(tmp_path)
    assert json.loads((folder / "key.json").read_text())["precision"] == "bfloat16"
    logits = torch.from_numpy(np.load(folder / "logits.npy"))
    assert torch.equal(logits, logits.bfloat16().half())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"data_preprocessor": dict(mixup_alpha=0.8)}, r"no image is itself with data_preprocessor.mixup_alpha=0.8"),
        ({"data_preprocessor": dict(cutmix_alpha=1.0)}, r"no image is itself with data_preprocessor.cutmix_alpha=1.0"),
        (
            {"model.edges": ["fusion_to_student"], "model.fusion.splice": "S1-3+T4"},
            "no edge takes anything from the teacher itself",
        ),
        (
            dict.fromkeys(f"model.{k}" for k in ("teacher", "fusion", "feature_loss", "logit_loss")),
            "there is no teacher",
        ),
        ({"teacher_cache.views": 0}, "views must be 1 or more, not 0"),
    ],
)
def test_what_cannot_be_cached_is_refused(config: Make, options: dict[str, Any], reason: str) -> None:
    settings = config(**{k: v for k, v in options.items() if k != "model.teacher"})
    if "model.teacher" in options:
        settings.model.update(teacher=None, edges=[])
    with pytest.raises(ConfigError, match=reason) as error:
        check_config(settings)
    assert len(error.value.problems) == 1 and "teacher_cache: " in error.value.problems[0]
    with pytest.raises(ConfigError, match=reason):
        DistillRunner.from_cfg(settings)


NO_FUSION: dict[str, Any] = dict.fromkeys(("model.fusion", "model.feature_loss", "model.logit_loss"))
NO_FUSION |= {"model.edges": ["teacher_to_student"], "model.stage_loss": dict(type="FitNetLoss")}


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"model.fusion.splice": "T1-3+S4"}, {"stage_3"}),
        ({"model.fusion.splice": "S1-3+T4"}, set()),
        ({"model.fusion.splice": ["S1-3+T4", "T1+S2+T3-4", "T1-2+S3-4"]}, {"stage_1", "stage_2"}),
        ({"model.fusion.splice": "T1-3+S4", "model.edges": ["fusion_to_student"]}, {"stage_3"}),
        (NO_FUSION, {"stage_1", "stage_2", "stage_3", "stage_4"}),
    ],
)
def test_a_step_with_it_is_the_step_without_it_in_half_precision(
    config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any], parts: set[str]
) -> None:
    settings = config(**{"train_cfg.max_epochs": 2}, **options)
    check_config(settings)
    runner = DistillRunner.from_cfg(settings)
    model, step, ran, differences = runner.distiller, runner.model.train_step, [0], []
    training = False

    def train_step(data: dict[str, Any], **kwargs: Any) -> Any:
        nonlocal training
        with torch.no_grad():
            inputs = model.data_preprocessor(data)
            given = {key: value for key, value in inputs.items() if not key.startswith("teacher_")}
            fresh, cached = model(**given, mode="loss"), model(**inputs, mode="loss")
        differences.extend(abs(cached[name] - fresh[name]).item() for name in fresh)
        torch.testing.assert_close(cached, fresh, rtol=2e-3, atol=2e-3)
        training = True
        outputs = step(data, **kwargs)
        training = False
        return outputs

    model.teacher.stages[0].register_forward_hook(lambda *_: ran.__setitem__(0, ran[0] + training))
    runner.model.train_step = train_step
    runner.train()
    assert ran == [0] and len(differences) >= 6 and max(differences) > 0  # the numbers are those of the files
    (folder,) = caches(tmp_path)
    assert {path.stem for path in folder.glob("*.npy")} == {"features", "logits", *parts}
    out = " ".join(capsys.readouterr().out.split())
    size = sum(path.stat().st_size - 128 for path in folder.glob("*.npy"))
    assert f"teacher cache: {size / 1e6:.1f} MB for features, logits" in out
    assert ("stage 3 (NCHW 24 x 2x2)" in out) == ("stage_3" in parts)


def test_files_larger_than_the_disk_are_refused_before_they_are_begun(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000))
    line = (
        r"its files would take 0.0 MB, 0.0 MB of it outputs of stages, and the disk has 0.0 MB left; set fewer teacher_"
    )
    with pytest.raises(FBTError, match=line):
        run(config(**{"model.fusion.splice": "T1-3+S4"}))
    assert caches(tmp_path) == []
    run(config("small", **{"model.fusion.splice": "S1-3+T4", "train_cfg.max_epochs": 1}))


def scratch(settings: Config) -> None:
    settings.model.update(teacher=None, fusion=None, edges=[], feature_loss=None, logit_loss=None)


def starts_in_the_student(settings: Config) -> None:
    settings.model.fusion.splice = "S1-3+T4"


def starts_in_the_teacher(settings: Config) -> None:
    settings.model.fusion.splice = "T1-3+S4"


def test_where_it_is_not_required_all_runs_show_the_same_views(
    config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = {
        "cached": (starts_in_the_student, "built in"),
        "scratch": (scratch, "instead of fresh augmentation (no teacher)"),
        "T1-3+S4": (starts_in_the_teacher, "instead of fresh augmentation (the teacher runs on them)"),
    }
    shown: dict[str, list[torch.Tensor]] = {}
    for name, (change, says) in cases.items():
        settings = config(name, **{"teacher_cache.required": False})
        change(settings)
        check_config(settings)
        runner = DistillRunner.from_cfg(settings)
        step, images = runner.model.train_step, shown.setdefault(name, [])

        def train_step(
            data: dict[str, Any], *, step: Any = step, images: Any = images, cached: bool = name == "cached", **kw: Any
        ) -> Any:
            assert ("teacher_logits" in data) == cached
            images.append(data["inputs"].clone())
            return step(data, **kw)

        runner.model.train_step = train_step
        runner.train()
        assert says in capsys.readouterr().out
    assert len(shown["cached"]) == 9 and len(caches(tmp_path)) == 1
    for name in ("scratch", "T1-3+S4"):
        assert all(torch.equal(a, b) for a, b in zip(shown["cached"], shown[name], strict=True)), name


def test_the_cells_of_a_matrix_share_it_wherever_their_runs_are(config: Make, tmp_path: Path) -> None:
    key = {"data set": {"name": "a"}, "teacher": {"name": "b"}}
    for folder, cell, beside in [
        ("runs/a_b/kd/seed_0", dict(pair="a_b", method="kd"), "runs"),
        ("runs/a_b/fbt/seed_1", dict(pair="a_b", method="fbt"), "runs"),
        ("elsewhere/mine", dict(pair="a_b", method="fbt"), "elsewhere"),
        ("runs/a_b/kd/seed_0", None, "runs/a_b/kd"),
    ]:
        runner = SimpleNamespace(work_dir=str(tmp_path / folder), cfg=dict(cell=cell))
        assert teacher_cache.default_folder(runner, key).parent == tmp_path / beside / "teacher_cache"


def test_unknown_keys_are_refused(config: Make) -> None:
    with pytest.raises(ConfigError, match="teacher_cache: unknown key 'veiws'; did you mean 'views'"):
        check_config(config(**{"teacher_cache.veiws": 3}))
    with pytest.raises(ConfigError, match="teacher_cache: views must be a whole number, not 'many'"):
        check_config(config(**{"teacher_cache.views": "many"}))


def test_a_stale_cache_is_refused_by_the_part_that_differs(config: Make, tmp_path: Path) -> None:
    state = torch.load(tmp_path / "teacher.pth", weights_only=True)
    state["stem.0.bias"][0] += 1
    torch.save(state, tmp_path / "other.pth")
    place = {"teacher_cache.path": str(tmp_path / "mine"), "train_cfg.max_epochs": 1}
    run(config(**place))
    changes: list[tuple[dict[str, Any], str]] = [
        ({"model.teacher.checkpoint": str(tmp_path / "other.pth")}, "teacher weights"),
        ({"model.teacher.mean": (0.1, 0.2, 0.3)}, "teacher"),
        ({"train_dataloader.dataset.transforms.0.padding": 3}, "transforms"),
        ({"train_dataloader.dataset.pixel": 9}, "data set"),
        ({"teacher_cache.seed": 1}, "view seed"),
        ({"teacher_cache.views": 3}, "views"),
        ({"optim_wrapper.precision": "bf16"}, "precision"),
    ]
    for changed, part in changes:
        line = rf"mine: it was made with another {part}; delete that folder, or set another"
        with pytest.raises(FBTError, match=line):
            run(config(**place, **changed))


def test_a_damaged_cache_is_refused(config: Make, tmp_path: Path) -> None:
    place = {"teacher_cache.path": str(tmp_path / "mine"), "train_cfg.max_epochs": 1}
    run(config(**place))
    path = tmp_path / "mine" / "logits.npy"
    data = path.read_bytes()
    refused = "(not a whole cache|its logits are not what was written)"
    for damaged in (data[:-1], data[:7], b"", data.replace(b"(2, 24, 10)", b"(2, 12, 10)")):
        assert damaged != data
        path.write_bytes(damaged)
        with pytest.raises(FBTError, match=rf"mine: {refused} \(.*\); delete") as error:
            run(config(**place))
        assert "\n" not in str(error.value)
    (tmp_path / "mine" / "key.json").write_text("{")
    with pytest.raises(FBTError, match="not a whole cache"):
        run(config(**place))


KEY = dict(views=1)
SHAPES = dict(features=(1, 4, 3), logits=(1, 4, 2))


def test_other_processes_wait_for_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_cache, "is_main_process", lambda: False)
    runner, folder = SimpleNamespace(timestamp="now", world_size=2), tmp_path / "mine"
    threading.Timer(0.2, folder.mkdir).start()
    start = time.perf_counter()
    teacher_cache._build_once(runner, folder, KEY, SHAPES)
    assert time.perf_counter() - start > 0.1
    (tmp_path / ".other.now.failed").touch()
    with pytest.raises(FBTError, match="process 0 could not build it"):
        teacher_cache._build_once(runner, tmp_path / "other", KEY, SHAPES)


def test_the_first_process_tells_the_others_that_it_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(teacher_cache, "write_cache", full)
    monkeypatch.setattr(teacher_cache, "_knowledge", lambda runner: [])
    with pytest.raises(FBTError, match=r"mine: it cannot be written \(.*No space left on device\)"):
        teacher_cache._build_once(SimpleNamespace(timestamp="now", world_size=2), tmp_path / "mine", KEY, SHAPES)
    assert [p.name for p in tmp_path.iterdir()] == [".mine.now.failed"]
