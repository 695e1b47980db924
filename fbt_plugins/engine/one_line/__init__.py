"""One line: from a folder of images and the names of two models to a run, with defaults for all else."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config.loading import Arguments, config_of
from ...console import relative, say
from ...data.image_files import printable
from ...errors import ConfigError, FBTError, one_line, typed, user_path
from ...files import check_out
from ...registry.loading import load_plugins
from ...registry.registries import ARCHITECTURES
from ..checkpoints.files import training_checkpoints
from ..plan import Plan
from .folder import AUTO, Folder, read_folder
from .models import ShortName, fitted, named, own_size
from .recipe import Choices, Method, method, recipe

_OF_A_RUN = ("config.py", "summary.json", "metrics.jsonl", "student.safetensors", "*.pth")

_NO_OTHER = re.compile(r"\.|\d{8}_\d{6}$")
"""Names of what may be in it: hidden files, and the log's folder of a run that did not come to its first step."""


def distill(
    data: str | Path,
    teacher: str | Mapping[str, Any],
    student: str | Mapping[str, Any],
    out: str | Path,
    method: str = "fbt",
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    img_size: int | None = None,
    lr: float | None = None,
    labels: str | None = AUTO,
    teacher_checkpoint: str | Path | None = None,
    pretrained: bool = True,
    pretrained_student: bool = False,
    device: str | None = None,
    workers: int | None = None,
    seed: int | None = None,
    amp: str | None = None,
    check: bool = False,
    resume: bool = False,
    command: str | None = None,
) -> Path:
    """Distils a teacher into a student on a folder of images, with or without labels.

    Args:
        data: the folder; :class:`Images` says what is read, and docs/guides/own-images.md.
        teacher: the model that is learned from: "timm:NAME", "torchvision:NAME", "hf:NAME", "FILE.py:FACTORY",
            "package.module:FACTORY", or a config for ``ARCHITECTURES``.
        student: the model that learns, likewise.
        out: folder of the run. Its config.py is the whole config, for ``fbt train``.
        method: one of ``configs/_base_/methods.py``.
        epochs: by default as many as give about 5,000 steps, from 10 to 50.
        batch_size: by default 64, or less (down to 8) where images are few.
        img_size: pixels of a side of the images; by default what the student is made for.
        lr: AdamW's rate; by default 1e-3 for a batch of 64, and a third of that for a student that has weights already.
        labels: "auto", "folders" (each is a class), "none", or the path of a table like labels.csv.
        teacher_checkpoint: file with the teacher's weights.
        pretrained: whether the teacher has its library's weights, where there is no file.
        pretrained_student: whether the student begins with its library's weights.
        device: "cpu", "cuda" or "cuda:N"; by default a GPU if there is one.
        workers: processes that read images; by default one for each core that it may use, up to 8.
        seed: of everything random; by default 0.
        amp: "bf16" or "fp16" for mixed precision.
        check: only check all of it, and say what would run: nothing is trained, downloaded or written.
        resume: go on with the run in ``out``.
        command: what was typed.

    Returns:
        The run's folder; ``load_student(out / "student.safetensors")`` is the student.

    Raises:
        FBTError: for whatever is wrong, in a line each.
    """
    load_plugins()
    choices = Choices(method, epochs, batch_size, lr, workers)
    folder_of_run = _out(out, data, resume)
    names = {
        "teacher": named(
            "teacher", teacher, None if teacher_checkpoint is None else str(teacher_checkpoint), pretrained
        ),
        "student": named("student", student, None, pretrained_student),
    }
    line = _line(read_folder(data, labels), names, choices, img_size)
    arguments = Arguments(
        work_dir=str(folder_of_run), resume=resume or None, device=device, seed=seed, amp=amp, command=command
    )
    plan = Plan.of_config(config_of(line.config, arguments))
    for text in line.lines(plan, folder_of_run):
        say(text)
    if check:
        for text in plan.lines():
            say(text)
        return folder_of_run
    for role in plan.distiller.models:
        _fetch(names[role], line.config["model"][role])
    plan.run()
    say(f"config   {relative(folder_of_run / 'config.py')}: all of it, to be changed and run by {typed('fbt train')}")
    return folder_of_run


@dataclass(frozen=True)
class _Line:
    """A run in one line.

    Attributes:
        config: its config.
        folder: its images.
        names: its models, with their classes.
        method: what is learned.
        name: of the method.
        size: pixels of a side of the images.
    """

    config: dict[str, Any]
    folder: Folder
    names: Mapping[str, ShortName]
    method: Method
    name: str
    size: int

    def lines(self, plan: Plan, out: Path) -> list[str]:
        """What was chosen, for people to read."""
        config, model = self.config, self.config["model"]
        found = list(self.folder.lines)
        for role, built in reversed(plan.distiller.models.items()):
            name, change = self.names[role], model[role]
            head = f"{built.num_classes} classes" if built.num_classes else "features only"
            if role == "teacher" and self.folder.classes and not built.num_classes:
                head += ": its classes are not those of the images"
            seen = change.get("input_size", (self.size, self.size))
            side = max(seen) if isinstance(seen, list | tuple) else seen
            found.append(f"{role}  {name.text}, {name.weights}, {head}, images of {side}x{side}")
        left_out = f"; {self.method.left_out}" if self.method.left_out else ""
        found.append(f"method   {self.name}: {self.method.about}{left_out}")
        loader, rate = config["train_dataloader"], config["optim_wrapper"]["optimizer"]["lr"]
        epochs, batch = config["train_cfg"]["max_epochs"], loader["batch_size"]
        found.append(
            f"training {epochs} epoch{'s' * (epochs != 1)} of {max(self.folder.images // batch, 1):,} steps, {batch} "
            f"images each, AdamW at {rate:g}, {loader['num_workers']} workers (--epochs, --batch-size, --lr, --workers)"
        )
        return found


def _line(folder: Folder, names: Mapping[str, ShortName], choices: Choices, img_size: int | None) -> _Line:
    """Puts a run together.

    Raises:
        FBTError: if models, method and images do not go together.
    """
    if img_size is not None and not (type(img_size) is int and img_size >= 8):
        raise ConfigError(f"--img-size is a whole number, 8 or more, not {img_size!r}")
    count = len(folder.classes)
    knows = bool(count) and names["teacher"].knows(folder.classes)
    learned = method(choices.method, labels=bool(count), logits=knows)
    heads = {"student": names["student"].with_classes(count)}
    if learned.has_teacher:
        heads = {"teacher": names["teacher"].with_classes(count if knows else 0, own_head=True), **heads}
    size = img_size or own_size(heads["student"])
    models = {role: fitted(name, size)[0] for role, name in heads.items()}
    config = recipe(folder, learned, models, size, choices)
    return _Line(config, folder, heads, learned, choices.method, size)


def _out(out: str | Path, data: str | Path, resume: bool) -> Path:
    """The run's folder.

    Raises:
        FBTError: if a run is in it that is not to go on, or other files are; if none is there to go on with; if it is a
            file, cannot be made, or lies among the images.
    """
    path = user_path(out)
    if path.exists() and not path.is_dir():
        raise FBTError(f"--out {out}: it is a file, not a folder")
    if path.resolve().is_relative_to(user_path(data).resolve()):
        raise FBTError(
            f"--out {out}: it lies in --data {data}, where a run's pictures would become images; name another"
        )
    if not resume and any(next(path.glob(name), None) for name in _OF_A_RUN):
        raise FBTError(
            f"--out {out}: there is a run in it already; say --resume to go on with it, or name another folder"
        )
    if (
        path.is_dir()
        and (others := sorted(e.name for e in path.iterdir() if not _NO_OTHER.match(e.name)))
        and not resume
    ):
        raise FBTError(
            f"--out {out}: it exists, and {printable(others[0])} is in it; name an empty folder, or a new one"
        )
    if resume and not training_checkpoints(path, 1):
        raise FBTError(
            f"--resume: no checkpoint in --out {out}; to start from the beginning, leave out --resume and name an "
            "empty folder, or a new one"
        )
    check_out(path)
    return path


def _fetch(name: ShortName, config: Mapping[str, Any]) -> None:
    """Has a model's weights downloaded, before anything else takes time.

    Raises:
        FBTError: if they cannot be had, with the ways out.
    """
    if "pretrained" not in config:
        return
    hub = logging.getLogger("huggingface_hub")  # which tells of each of its tries
    level = hub.level
    hub.setLevel(logging.CRITICAL)
    try:
        ARCHITECTURES.build(dict(config))
    except FBTError as error:
        reason = one_line(error.__cause__ or error).partition(". ")[0]
        ways = {
            "teacher": "give --teacher-checkpoint FILE, or for a trial with random weights --no-pretrained",
            "student": "leave out --pretrained-student",
        }
        raise FBTError(
            f"--{name.role} {name.text}: its pretrained weights could not be had ({reason[:200]}); without a network "
            f"{ways[name.role]}"
        ) from error
    finally:
        hub.setLevel(level)
