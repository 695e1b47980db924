"""A run's student as one file of a format that others read, checked against the run's own outputs."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from ...errors import FBTError, one_line
from ...files import check_out, own_folder, write_atomic
from ...models.weights import METADATA_KEY, SIGNATURE_KEY, signature_of
from .student import Student, open_student, read_student

FORMATS = {"safetensors": ".safetensors", "onnx": ".onnx", "pt2": ".pt2", "torchscript": ".pt"}
"""What can be written, and how such a file's name ends."""

TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2}
"""By precision, how far an output of the file may be from the run's, as a part of the run's largest."""

TRIED = (1, 2, 5)
"""Images in the batches that a file is checked with; it is traced with two."""

Runs = dict[str, Callable[[Tensor], Tensor]]
"""By the name of what runs it: images (N, 3, H, W) -> what a file that was written gives for them."""

LOGITS, FEATURES = "logits", "features"


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
        path: of it.
        beside: what goes with it, in the order written: the JSON file first.
        about: what the JSON file says.
    """

    path: Path
    beside: tuple[Path, ...]
    about: Mapping[str, Any]


class _Graph(nn.Module):
    """Normalised images (N, 3, H, W), float32 -> logits or features, float32, whatever the weights' precision."""

    def __init__(self, student: Student, output: str) -> None:
        super().__init__()
        self.model, self.output = student.model, output

    def forward(self, images: Tensor) -> Tensor:
        images = images.to(next(self.model.parameters()).dtype)
        found: Tensor = self.model.net(images) if self.output == LOGITS else self.model.knowledge(images).features
        return found.float()


def export_student(
    run: str | Path, form: str = "safetensors", out: Path | None = None, half: bool = False, features: bool = False
) -> Exported:
    """Writes a run's student alone, and beside it a JSON file with what its images go through.

    The file is checked on images before it gets its name: where its outputs are not the run's, nothing is left.

    Args:
        run: the run's folder, or its ``student.safetensors``.
        form: one of :data:`FORMATS`.
        out: the file; by default in the folder ``export`` beside the student.
        half: weights in half precision; inputs and outputs stay float32.
        features: what the student knows before its classifier (N, D), in the place of logits.

    Raises:
        FBTError: if it cannot be exported so, is there already, or gives other outputs than the run's student.
    """
    if out is not None:
        _check_target(out, form)
    student = open_student(run)
    classes = student.model.num_classes  # known before its weights are halved
    output = FEATURES if features or classes == 0 else LOGITS
    out = out or _default(student.path, form, half, features)
    beside = [_about(out)]
    if form == "safetensors" and _is_transformers(student) and not features:
        beside.append(out.with_name(f"{out.stem}_transformers"))
    _check_target(out, form, *beside[1:])
    images = sample_images(student)
    with torch.no_grad():
        known = student.model.knowledge(images)
    expected = known.output if output == LOGITS else known.features
    precision = "fp16" if half else "fp32"
    if half:
        student.model.half()
    about = describe(student, form, output, precision, tuple(expected.shape[1:]))
    try:
        with own_folder(out, ".export") as folder, torch.no_grad(), _quiet():
            runs = _WRITERS[form](student, _Graph(student, output), images[:2], folder / out.name, about)
            if len(beside) > 1:
                runs |= _for_transformers(student, folder / beside[1].name)
            about["checked"] = {
                by: difference(run, images, expected, TOLERANCES[precision], f"{form}, run by {by}")
                for by, run in runs.items()
            }
            about["tolerance"] = TOLERANCES[precision]
            for path in sorted(folder.iterdir()):
                path.replace(out.with_name(path.name))
    except OSError as error:
        raise FBTError(f"--out {out}: it cannot be written ({error.strerror})") from error
    write_atomic(beside[0], json.dumps(about, indent=2, ensure_ascii=False) + "\n")
    return Exported(out, tuple(beside), about)


def _about(out: Path) -> Path:
    """The JSON file beside a file that is written."""
    return out.with_name(f"{out.name}.json")


def _check_target(out: Path, form: str, *others: Path) -> None:
    """Looks whether a file, what goes beside it and others can be written.

    Raises:
        FBTError: if its name is of another format, one of them is there, or the place cannot be written to.
    """
    if out.suffix != FORMATS[form]:
        raise FBTError(f"--out {out}: a file of the format {form} is called NAME{FORMATS[form]}")
    if there := next((path for path in (out, _about(out), *others) if path.exists()), None):
        raise FBTError(f"--out {there}: it exists; remove it, or write to another file")
    check_out(out)


def _is_transformers(student: Student) -> bool:
    """Whether a student is a network of transformers', which has a way of its own to be written."""
    return all(hasattr(student.model.net, name) for name in ("save_pretrained", "from_pretrained", "config"))


def _for_transformers(student: Student, folder: Path) -> Runs:
    """Writes a folder that ``AutoModelForImageClassification.from_pretrained`` reads."""
    net: Any = student.model.net
    net.config.id2label = dict(enumerate(student.classes))
    net.config.label2id = {name: number for number, name in enumerate(student.classes)}
    net.save_pretrained(folder)
    height, width = student.image_size
    images = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": student.model.mean,
        "image_std": student.model.std,
    }
    write_atomic(folder / "preprocessor_config.json", json.dumps(images, indent=2) + "\n")
    import transformers

    loaded = type(net).from_pretrained(folder).eval()
    dtype = next(loaded.parameters()).dtype
    return {f"transformers {transformers.__version__}": lambda x: loaded(x.to(dtype)).logits.float()}


def _default(source: Path, form: str, half: bool, features: bool) -> Path:
    name = "_".join(["student", *(["features"] if features else []), *(["fp16"] if half else [])])
    return source.parent / "export" / f"{name}{FORMATS[form]}"


def sample_images(student: Student) -> Tensor:
    """Normalised images (N, 3, H, W) to compare outputs on: coloured blobs, which networks tell from each other."""
    generator = torch.Generator().manual_seed(0)
    blobs = torch.rand(max(TRIED), student.model.in_chans, 4, 4, generator=generator)
    images = nn.functional.interpolate(blobs, student.image_size, mode="bicubic").clamp(0, 1)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (student.model.mean, student.model.std))
    return (images - mean) / std


def describe(student: Student, form: str, output: str, precision: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """What a user of the file has to know, and can read without us."""
    model, about = student.model, student.about
    return {
        "model": model.name,
        "config": about.get("config"),
        "format": form,
        "precision": precision,
        "input": {"name": "images", "shape": ["batch", model.in_chans, *student.image_size], "dtype": "float32"},
        "output": {"name": output, "shape": ["batch", *shape], "dtype": "float32"},
        "preprocessing": {
            "transforms": about.get("transforms"),
            "image_size": about.get("image_size"),
            "input_size": model.input_size,
            "scale": "0 to 1",
            "mean": model.mean,
            "std": model.std,
        },
        "classes": list(student.classes),
        "top1": about.get("top1"),
        "split": about.get("split"),
    }


def difference(run: Callable[[Tensor], Tensor], images: Tensor, expected: Tensor, tolerance: float, what: str) -> float:
    """How far outputs are from the expected ones at most, as a part of the largest of these.

    Args:
        run: images (N, 3, H, W) -> outputs; called with batches of the sizes :data:`TRIED`.
        images, expected: of the largest of them.
        tolerance: of the difference.
        what: gives the outputs, in an error line.

    Raises:
        FBTError: if they are of another shape or further away, or a batch cannot be run.
    """
    scale = max(float(expected.abs().max()), torch.finfo(torch.float32).tiny)
    worst = 0.0
    for size in TRIED:
        try:
            found = run(images[:size])
        except Exception as error:  # whatever the library that runs it raises
            raise FBTError(f"{what}: a batch of {size} fails ({one_line(error)[:300]}); no file is left") from error
        if found.shape != expected[:size].shape:
            shapes = f"outputs of {tuple(found.shape)} for {size} images, the run's are {tuple(expected[:size].shape)}"
            raise FBTError(f"{what}: {shapes}; no file is left")
        off = float((found - expected[:size]).abs().max()) / scale
        if not off <= tolerance:  # NaN is neither
            far = f"outputs differ from the run's by {off:.2g} of the largest, {tolerance:g} is allowed"
            raise FBTError(f"{what}: {far}; no file is left")
        worst = max(worst, off)
    return worst


def _safetensors(student: Student, graph: _Graph, images: Tensor, path: Path, about: dict[str, Any]) -> Runs:
    metadata = {key: value for key, value in student.about.items() if key != "config"}
    config = dict(student.about.get("config") or {"type": "timm", "name": metadata["name"], **metadata["arguments"]})
    net = student.model.net
    if graph.output == FEATURES and student.model.num_classes:
        if config.get("type") != "timm" or not hasattr(net, "reset_classifier"):
            raise FBTError(
                f"--features: safetensors without a classifier are for timm's models, not {config['type']}'s"
            )
        reset: Callable[[int], None] = net.reset_classifier  # type: ignore[assignment] # timm's own
        reset(0)
        metadata["arguments"] = {**metadata["arguments"], "num_classes": 0}
        metadata["classes"], config["num_classes"] = [], 0
    text = json.dumps({**metadata, "config": config}, default=str)
    tensors = {name: value.contiguous() for name, value in net.state_dict().items()}
    signed = {METADATA_KEY: text, SIGNATURE_KEY: signature_of(tensors, text), "format": "pt"}
    write_atomic(path, safetensors_bytes(tensors, metadata=signed))
    if config.get("type") == "timm":
        import timm

        loaded = timm.create_model(metadata["name"], **metadata["arguments"], checkpoint_path=str(path))
        return {f"timm {timm.__version__}": loaded.eval()}
    return {f"torch {torch.__version__}": read_student(path).model}


def _onnx(student: Student, graph: _Graph, images: Tensor, path: Path, about: dict[str, Any]) -> Runs:
    program = _traced(
        lambda: torch.onnx.export(
            graph,
            (images,),
            dynamo=True,
            input_names=[about["input"]["name"]],
            output_names=[graph.output],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        ),
        "onnx",
    )
    program.model.metadata_props[METADATA_KEY] = json.dumps(about)
    program.save(str(path), external_data=False)
    if find_spec("onnxruntime") is None:
        return {}
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    name = f"onnxruntime {onnxruntime.__version__}"
    return {name: lambda x: torch.from_numpy(session.run(None, {about["input"]["name"]: x.numpy()})[0])}


def _program(graph: _Graph, images: Tensor) -> Any:
    """What ``torch.export`` makes of it, for any number of images."""
    shapes = ({0: torch.export.Dim("batch")},)
    return torch.export.export(graph, (images,), dynamic_shapes=shapes, strict=False)


def _pt2(student: Student, graph: _Graph, images: Tensor, path: Path, about: dict[str, Any]) -> Runs:
    program = _traced(lambda: _program(graph, images), "pt2")
    torch.export.save(program, path, extra_files={f"{METADATA_KEY}.json": json.dumps(about)})
    return {f"torch {torch.__version__}": torch.export.load(path).module()}


def _torchscript(student: Student, graph: _Graph, images: Tensor, path: Path, about: dict[str, Any]) -> Runs:
    def trace() -> Any:
        # A cut that was found by a trace looks at the sizes of its images, which are no numbers while TorchScript
        # traces; in a program they were looked at before.
        looks = graph.output == FEATURES and student.model.way == "traced"
        module = _program(graph, images).module() if looks else graph
        return torch.jit.trace(module, images, check_trace=False)

    torch.jit.save(_traced(trace, "torchscript"), str(path), _extra_files={f"{METADATA_KEY}.json": json.dumps(about)})
    return {f"torch {torch.__version__}": torch.jit.load(str(path))}


_WRITERS: Mapping[str, Callable[[Student, _Graph, Tensor, Path, dict[str, Any]], Runs]] = {
    "safetensors": _safetensors,
    "onnx": _onnx,
    "pt2": _pt2,
    "torchscript": _torchscript,
}


def _traced(trace: Callable[[], Any], form: str) -> Any:
    """What torch makes of the student.

    Raises:
        FBTError: where it cannot.
    """
    try:
        return trace()
    except ModuleNotFoundError:
        raise
    except Exception as error:  # torch's exporters raise whatever the network's code does under them
        raise FBTError(f"{form}: torch cannot export this student ({one_line(error)[:300]})") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporters' warnings about themselves off the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
