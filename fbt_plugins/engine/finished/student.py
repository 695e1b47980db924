"""A run's student as a file for everyone: written, and built again with the transform that its images need."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn
from torchvision.transforms import v2

from ...config.loading import load_plugins_of
from ...data.transforms import build_transforms
from ...errors import FBTError, one_line, short, user_path
from ...files import write_atomic
from ...models.image_sizes import resized
from ...models.staged import StagedModel
from ...models.weights import METADATA_KEY, SIGNATURE_KEY, read_weights, signature_of
from ...registry.loading import load_plugins
from ...registry.registries import ARCHITECTURES

STUDENT_FILE = "student.safetensors"
"""A run's student, in the run's folder."""

_OF_OTHER_WEIGHTS = ("checkpoint", "pretrained")


@dataclass(frozen=True)
class Student:
    """A finished run's student.

    Attributes:
        path: of its file.
        model: with its weights, in evaluation mode.
        about: what the file says beside them.
        transform: what turns an image into the model's input; see :func:`load_student`.
    """

    path: Path
    model: StagedModel
    about: Mapping[str, Any]
    transform: Callable[[Image | Tensor], Tensor]

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of what the transform gives, and the model takes."""
        height, width = self.model.input_size or self.about.get("image_size") or self.model.image_size
        return int(height), int(width)

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes, by number; the numbers themselves where the file has no names that fit."""
        names = list(map(str, self.about.get("classes") or ()))
        count = self.model.num_classes
        return names if len(names) == count else [str(number) for number in range(count)]


def about_student(config: Any, dataset: Any, model: StagedModel | None = None) -> dict[str, Any]:
    """What a student's file says, beside its weights, so that :func:`load_student` can build it again.

    Args:
        config: ``model.student`` of the run.
        dataset: that it was tested on; its transforms are those of new images.
        model: of that config, which knows what it is where the config only names weights that say it.
    """
    about: dict[str, Any] = {}
    if isinstance(config, Mapping):
        about["config"] = {key: value for key, value in config.items() if key not in _OF_OTHER_WEIGHTS}
        if about["config"].get("head") == "new":  # it has been trained: the file has it
            del about["config"]["head"]
        described = isinstance(config.get("pretrained"), str) or config.get("checkpoint") is not None
        if model is not None and described and "path" not in config:  # what it is, a folder or the Hub may have said
            known = {"name": model.name, **model.arguments}
            about["config"] |= {key: value for key, value in known.items() if key not in config}
    if (transforms := getattr(dataset, "transforms", None)) is not None:
        about["transforms"] = list(transforms)
    return about


def save_student(model: StagedModel, path: Path, about: Mapping[str, Any]) -> None:
    """Writes a model as safetensors under its own (timm's) names, with what is needed to build it as metadata.

    Args:
        model: the student.
        path: the file.
        about: further metadata, such as classes and accuracy.
    """
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.net.state_dict().items()}
    first = {t.untyped_storage()._cdata: name for name, t in reversed(tensors.items())}
    for name, tensor in tensors.items():
        if first[tensor.untyped_storage()._cdata] != name:  # tied weights: the file has them under each of their names
            tensors[name] = tensor.clone()
    metadata: dict[str, Any] = {"name": model.name, "arguments": model.arguments, "mean": model.mean, "std": model.std}
    metadata |= {"input_size": model.input_size, **about}
    text = json.dumps(metadata, default=str)
    about_file = {METADATA_KEY: text, SIGNATURE_KEY: signature_of(tensors, text)}
    write_atomic(path, safetensors_bytes(tensors, metadata=about_file))


def find_student(run: str | Path) -> Path:
    """The file of a run's student.

    Args:
        run: the run's folder, or the file itself.

    Raises:
        FBTError: if there is none.
    """
    path = user_path(run)
    if path.is_file() and path.suffix != ".py":
        return path
    if path.suffix == ".py":
        raise FBTError(f"run {str(run)!r}: a run is the folder that a training left, and this is a config")
    if not path.is_dir():
        raise FBTError(f"run {str(run)!r}: no such folder")
    if not (file := path / STUDENT_FILE).is_file():
        why = "its training has not ended" if (path / "config.py").is_file() else "it is no run's folder"
        raise FBTError(f"run {str(run)!r}: no {STUDENT_FILE} in it: {why}")
    return file


def open_student(run: str | Path) -> Student:
    """A run's student, with the plugins that the run's config names as ``custom_imports``.

    Args:
        run: the run's folder; or the student's file alone, which names no module that would be imported.

    Raises:
        FBTError: as :func:`find_student` and :func:`read_student` do, or if a plugin cannot be imported.
    """
    path = find_student(run)
    config = path.with_name("config.py")
    if path != user_path(run) and config.is_file():
        load_plugins_of(config)
    return read_student(path)


def read_student(path: str | Path) -> Student:
    """A finished run's student, as the run had it.

    Args:
        path: a run's ``student.safetensors``, or one that ``fbt export`` wrote.

    Raises:
        FBTError: if the file is no student's, or a plugin that its architecture needs is not there.
    """
    about = read_weights(str(path))[1]
    if "name" not in about:
        raise FBTError(f"{path}: it does not say which model it is: not a student of a run")
    check_about(path, about)
    load_plugins()
    config = about.get("config") or {"type": "timm", "name": about["name"], **about["arguments"]}
    try:
        model: StagedModel = ARCHITECTURES.build({**config, "checkpoint": str(path)})
    except TypeError as error:  # an architecture that is another one here
        raise FBTError(f"{path}: {one_line(error)}") from error
    return Student(Path(path), model.eval(), about, _transform(model, about))


def check_about(path: str | Path, about: Mapping[str, Any]) -> None:
    """Looks at what a file says beside the weights, as far as it is used here.

    Raises:
        FBTError: if a value is of another form than what :func:`about_student` and the run write.
    """

    def is_size(value: object) -> bool:
        return isinstance(value, list) and len(value) == 2 and all(type(n) is int and n > 0 for n in value)

    forms: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "name": ("text", lambda value: isinstance(value, str)),
        "config": ("an object", lambda value: value is None or isinstance(value, dict)),
        "arguments": (
            "an object",
            lambda value: isinstance(value, dict) or (value is None and bool(about.get("config"))),
        ),
        "transforms": ("a list of objects", lambda value: value is None or _is_list(value, dict)),
        "image_size": ("[height, width]", lambda value: value is None or is_size(value)),
        "classes": ("a list of names", lambda value: value is None or _is_list(value, str | int)),
    }
    for key, (form, fits) in forms.items():
        if not fits(value := about.get(key)):
            found = f"not {short(value)}" if key in about else "and it is missing"
            raise FBTError(f"{path}: what it says about its model is damaged: {key!r} is {form}, {found}")


def _is_list(value: object, kind: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, kind) for part in value)


def load_student(path: str | Path) -> tuple[nn.Module, Callable[[Image | Tensor], Tensor]]:
    """A finished run's student, and what turns an image into its input.

    ``model(transform(image)[None])`` is its logits (1, C), as the run itself tested it.

    Args:
        path: a run's ``student.safetensors``.

    Returns:
        The network in evaluation mode, as timm (or whoever made it) builds it; and the transform, which takes an image
        as the data set stores it, PIL or uint8 (3, H, W), and does what the run's test did: transforms, the resizing
        to the model's own ``input_size`` if it has one, and the normalisation by the mean and std of the file.

    Raises:
        FBTError: as :func:`read_student` does.
    """
    student = read_student(path)
    return student.model.net, student.transform


def _transform(model: StagedModel, about: Mapping[str, Any]) -> Callable[[Image | Tensor], Tensor]:
    steps = about.get("transforms")
    if steps is None:  # nobody has tested it: then at least its size is right
        steps = [{"type": "Resize", "size": list(about.get("image_size", model.image_size))}]
    stored = build_transforms(steps, "transforms")
    scaled = v2.ToDtype(torch.float32, scale=True)
    normalised = v2.Normalize(model.mean, model.std)

    def transform(image: Image | Tensor) -> Tensor:
        image = image if isinstance(image, Tensor) else image.convert("RGB")
        found: Tensor = normalised(resized(scaled(stored(image))[None], model.input_size)[0])
        return found

    return transform
