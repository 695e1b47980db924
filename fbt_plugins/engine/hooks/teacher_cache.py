"""What the teacher knows about a few fixed views of each training image, computed once and read back from files."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from rich.progress import track
from torch.utils.data import DataLoader

from ...console import console, relative, say
from ...data import ImageDataset, InMemoryLoader
from ...distill.distiller import Distiller
from ...distill.edge import TEACHER
from ...errors import ConfigError, FBTError, one_line
from ...files import remove_dead_folders
from ...models.knowledge import Knowledge
from ...models.staged import StagedModel
from ...models.weights import weights_sha256
from ..data_workers import worker_context
from ..provenance import versions
from ..training_run import TrainingRun
from .teacher_cache_files import (
    STAGE,
    UNFINISHED,
    Shapes,
    bytes_of,
    in_batch,
    in_bytes,
    open_cache,
    room_for,
    take,
    write_cache,
)

FORMAT = 1
_BATCH = 128


class TeacherCacheHook(Hook):
    """Gives losses and fusion models what the teacher knows from files instead of running it on every batch.

    Stored are its features, its logits where it has a classifier, and the outputs of the stages that splices start from
    and that losses take. Images are augmented in ``views`` ways, the same in every run, and epoch n shows view n modulo
    ``views``; the price of the time saved is that no augmentation is fresh. The files are built before the first step
    where there are none. The hook has no state: what a step gets depends on its images' views and positions only. The
    runner registers it where the config has ``teacher_cache``; as one of ``custom_hooks`` it would come too late.

    In a comparison all methods should see the same images, also those that have no teacher, or that want more of it
    than is worth a file. For that there is ``required=False``: every run shows the fixed views, files hold features and
    logits, and a run that wants outputs of stages runs its teacher on the views.

    Args:
        views: augmented versions of each image.
        seed: seed of their augmentation, in place of the run's, so that runs of other seeds share the files.
        path: the cache's folder; None is one under ``teacher_cache`` beside the run's, named after what it holds. All
            runs of a matrix share it: it is beside their pairs' folders.
        required: whether all that the run wants of the teacher comes from files, outputs of stages too; a run for which
            that cannot be is refused.

    Raises:
        ConfigError: if there is no view at all.
    """

    priority = "NORMAL"  # after the teacher check, before the progress bar

    def __init__(self, views: int = 4, seed: int = 0, path: str | None = None, required: bool = True) -> None:
        if views < 1:
            raise ConfigError(f"teacher_cache: views must be 1 or more, not {views}; teacher_cache=None is off")
        self.views, self.seed, self.path, self.required = int(views), int(seed), path, required
        self._unread: list[str] = []
        self._arrays: dict[str, np.ndarray] = {}

    def fix_views(self, runner: TrainingRun) -> None:
        """Lets the training data show the fixed views; must come before a worker process gets its copy of them.

        Raises:
            ConfigError: if the run cannot have a cache.
        """
        self._unread = refusals(runner.distiller, runner.cfg.get("data_preprocessor"), stages=self.required)
        problems = list(self._unread) if self.required else []
        dataset = runner.train_data
        if not hasattr(dataset, "fix_views"):  # mmengine's wrapper of a part is no ImageDataset, but has its methods
            problems.append(f"teacher_cache: the training data must be an ImageDataset, not {type(dataset).__name__}")
        if problems:
            raise ConfigError(problems)
        dataset.fix_views(self.views, self.seed)

    def before_train(self, runner: TrainingRun) -> None:
        what = f"{self.views} fixed view{'s' * (self.views > 1)} per image instead of fresh augmentation"
        teacher = runner.distiller.teacher
        if self._unread:
            say(f"teacher cache: {what} ({'the teacher runs on them' if teacher else 'no teacher'})")
            return
        assert teacher is not None  # without one the cache is unread
        dataset = runner.train_dataloader.dataset
        stages = sorted(runner.distiller.asked_of_teacher())
        key = cache_key(runner, dataset, teacher, stages)
        folder = Path(self.path).expanduser() if self.path else default_folder(runner, key)
        specs = runner.distiller.specs(TEACHER)
        sizes: dict[str, tuple[int, ...]] = {"features": (teacher.num_features,)}
        sizes |= {"logits": (teacher.num_classes,)} if teacher.num_classes else {}
        sizes |= {f"{STAGE}{number}": specs[number - 1].sizes(1)[1:] for number in stages}
        shapes = {part: (self.views, len(dataset), *size) for part, size in sizes.items()}
        note = "reused"
        if is_main_process():
            remove_dead_folders(folder, UNFINISHED)
        if not folder.exists():
            start = time.perf_counter()
            parts = [*(p for p in sizes if not p.startswith(STAGE)), *(f"stage {n} ({specs[n - 1]})" for n in stages)]
            say(f"teacher cache: {in_bytes(bytes_of(shapes))} for {', '.join(parts)}")
            _build_once(runner, folder, key, shapes)
            note = f"built in {time.perf_counter() - start:.0f} s"
        self._arrays, self._folder = open_cache(folder, key, shapes), folder
        say(f"teacher cache: {what} ({relative(folder)}, {in_bytes(bytes_of(shapes))}, {note})")

    def before_train_iter(self, runner: TrainingRun, batch_idx: int, data_batch: Any = None) -> None:
        if not self._arrays:
            return
        where = data_batch["view"].cpu().numpy(), data_batch["index"].cpu().numpy()
        data_batch.update(in_batch(take(self._folder, self._arrays, where)))


def refusals(distiller: Distiller | None, preprocessor: Mapping[str, Any] | None, stages: bool = True) -> list[str]:
    """Why a run cannot have a cache, one line each.

    Args:
        distiller: the models, with or without weights; None where they could not be built.
        preprocessor: the config's ``data_preprocessor``.
        stages: whether the cache may hold outputs of stages.
    """
    where, off = "teacher_cache", "or set teacher_cache=None"
    problems = []
    for name in ("mixup_alpha", "cutmix_alpha"):
        alpha = (preprocessor or {}).get(name, 0)
        if isinstance(alpha, int | float) and alpha > 0:
            problems.append(f"{where}: no image is itself with data_preprocessor.{name}={alpha}; set that to 0, {off}")
    if distiller is None:
        return problems
    if distiller.teacher is None:
        return [*problems, f"{where}: there is no teacher; set model.teacher, {off}"]
    asked = distiller.asked_of_teacher()
    if asked and not stages:
        problems.append(f"{where}: losses or splices take the teacher's stages {sorted(asked)}, {off}")
    if not asked and not any(TEACHER in edge.ends for edge in distiller.edges.values()):
        problems.append(f"{where}: no edge takes anything from the teacher itself; add 'teacher_to_student', {off}")
    return problems


def cache_key(
    runner: TrainingRun, dataset: ImageDataset, teacher: StagedModel, stages: Sequence[int] = ()
) -> dict[str, Any]:
    """Everything that the stored numbers depend on, by the names that an error line uses."""
    names = ("name", "arguments", "mean", "std", "input_size")
    with runner.optim_wrapper.optim_context(runner.model):
        kind = runner.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
    key = {
        "format": FORMAT,
        "teacher": {name: getattr(teacher, name) for name in names},
        "teacher weights": weights_sha256(teacher),
        "data set": {"name": dataset.metainfo["name"], "size": len(dataset), "sha256": dataset.fingerprint()},
        "transforms": dataset.transforms,
        "in_memory": isinstance(runner.train_dataloader, InMemoryLoader),  # it draws other random numbers
        "image size": dataset.image_size,
        "views": dataset.views,
        "view seed": dataset.seed,
        "precision": str(dtype).removeprefix("torch."),
        "versions": versions(),  # another library's release may draw other augmentations
    }
    if stages:  # a cache of outputs alone is called what it was before
        key["set of stages"] = list(stages)
    return json.loads(json.dumps(key, default=str))


def default_folder(runner: TrainingRun, key: Mapping[str, Any]) -> Path:
    """Beside the run's folder, or, for a matrix's PAIR/METHOD/RUN, beside the pairs'; no other key has its name."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    name = re.sub(r"[^\w.-]+", "_", f"{key['data set']['name']}-{key['teacher']['name']}-{digest}")
    beside = Path(runner.work_dir).absolute().parent
    if (cell := runner.cfg.get("cell")) and beside.parts[-2:] == (cell["pair"], cell["method"]):
        beside = beside.parents[1]
    return beside / "teacher_cache" / name


def _build_once(runner: TrainingRun, folder: Path, key: Mapping[str, Any], shapes: Shapes) -> None:
    """Builds in the first process; the others wait for its folder, because a collective operation would time out."""
    failed = folder.with_name(f".{folder.name}.{runner.timestamp}.failed")  # all processes have the same time stamp
    try:
        folder.parent.mkdir(
            parents=True, exist_ok=True
        )  # in all processes, so that none waits for a folder that cannot be made
        if is_main_process():
            room_for(folder, shapes)
            write_cache(folder, key, shapes, _knowledge(runner))
        while not folder.exists():
            if failed.exists():
                raise FBTError("teacher cache: process 0 could not build it")
            time.sleep(0.5)
    except BaseException as error:
        if is_main_process() and runner.world_size > 1:
            with suppress(OSError):
                failed.touch()
        if isinstance(error, OSError):
            raise FBTError(f"teacher cache {folder}: it cannot be written ({one_line(error)})") from error
        raise


@torch.no_grad()
def _knowledge(runner: TrainingRun) -> Iterator[Knowledge]:
    """The teacher's, batch by batch, of every view of the training images, in the precision of training."""
    distiller = runner.distiller
    dataset, stages = runner.train_dataloader.dataset, runner.distiller.asked_of_teacher()
    everything: Any = itertools.product(range(dataset.views), range(len(dataset)))
    loader: Any
    if isinstance(runner.train_dataloader, InMemoryLoader):
        loader = InMemoryLoader(dataset, everything, _BATCH, device=runner.device)
    else:
        # A generator of its own, so that the run draws the same numbers whether or not it had to build a cache.
        workers, generator = runner.train_dataloader.num_workers, torch.Generator()
        loader = DataLoader(dataset, _BATCH, sampler=everything, num_workers=workers, generator=generator)
        loader.multiprocessing_context = worker_context() if workers else None
    batches = math.ceil(dataset.views * len(dataset) / _BATCH)
    for batch in track(loader, "teacher cache", batches, console=console, disable=not console.is_terminal):
        inputs = distiller.data_preprocessor(batch, False)["inputs"]
        with runner.optim_wrapper.optim_context(distiller):
            known = distiller.ask_teacher(inputs, stages)
        yield known
