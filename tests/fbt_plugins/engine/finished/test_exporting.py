"""A student as a file for others: loaded by what others load it with, and refused where it is not the run's."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import CNN, CONVNEXT, RESMLP, SWIN, VIT
from forked import Done
from safetensors import safe_open

from fbt_plugins import ARCHITECTURES, FBTError, load_student
from fbt_plugins.engine.finished import exporting
from fbt_plugins.engine.finished.exporting import FORMATS, TOLERANCES, export_student, sample_images
from fbt_plugins.engine.finished.student import about_student, open_student, read_student, save_student

CLASSES = [f"class {number}" for number in range(10)]
PAD = [dict(type="Pad", padding=2)]
THEIRS = """
from torch import nn

def net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )
"""


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Writes a student as a run does, with weights that tell its images from each other."""

    def save(config: dict[str, Any] = CONVNEXT) -> Path:
        torch.manual_seed(0)
        model = ARCHITECTURES.build(dict(config, mean=0.4, std=0.2))
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        about = {"image_size": (32, 32), "classes": CLASSES, "transforms": PAD} | about_student(config, None)
        path = tmp_path / "run" / "student.safetensors"
        save_student(model, path, about)
        return path

    return save


@torch.no_grad()
def outputs(path: Path, features: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Images, and what a student says of them."""
    student = read_student(path)
    known = student.model.knowledge(images := sample_images(student))
    return images, known.features if features else known.logits


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCES["fp32"]) -> bool:
    return found.shape == expected.shape and bool((found - expected).abs().max() <= tolerance * expected.abs().max())


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
def test_timm_loads_the_safetensors(saved: Callable, half: bool) -> None:
    path = saved()
    images, logits = outputs(path)
    done = export_student(path, "safetensors", half=half)
    arguments = {key: value for key, value in CONVNEXT.items() if key not in ("type", "name")}
    model = timm.create_model(CONVNEXT["name"], **arguments, checkpoint_path=str(done.path)).eval()
    with torch.no_grad():
        assert close(model(images), logits, TOLERANCES["fp16" if half else "fp32"])
    with safe_open(done.path, "pt") as file:
        kinds = {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118 - not a dict
    assert kinds == {torch.float16 if half else torch.float32}
    net, transform = load_student(done.path)  # with all that a run's own file says
    own, own_transform = load_student(path)
    image = torch.randint(0, 256, (3, 28, 28), dtype=torch.uint8)
    assert torch.equal(transform(image), own_transform(image)) and (half or close(net(images), own(images)))


@pytest.mark.parametrize("config", [CONVNEXT, CNN], ids=["convnext", "resnet"])
def test_timm_loads_it_with_features_only(saved: Callable, config: dict[str, Any]) -> None:
    path = export_student(saved(config)).path
    arguments = {key: value for key, value in config.items() if key not in ("type", "name", "num_classes")}
    model = timm.create_model(
        config["name"], features_only=True, pretrained=True, pretrained_cfg_overlay=dict(file=str(path)), **arguments
    ).eval()
    student = read_student(path)
    images = sample_images(student)
    with torch.no_grad():
        maps, stages = model(images), student.model.stage_outputs(images, (1, 2, 3, 4))
    assert all(close(found, stages[number]) for number, found in enumerate(maps[-4:], 1))


def test_a_config_goes_on_with_it(saved: Callable) -> None:
    path = export_student(saved()).path
    images, logits = outputs(path)
    student = ARCHITECTURES.build(dict(CONVNEXT, checkpoint=str(path)))
    assert student.mean == (0.4,) * 3 and close(student.eval()(images), logits)


def test_without_the_classifier(saved: Callable) -> None:
    path = saved()
    images, features = outputs(path, features=True)
    done = export_student(path, features=True)
    arguments = {key: value for key, value in CONVNEXT.items() if key not in ("type", "name")}
    model = timm.create_model(CONVNEXT["name"], **arguments | {"num_classes": 0}, checkpoint_path=str(done.path)).eval()
    with torch.no_grad():
        assert close(model(images), features)
    assert done.path.name == "student_features.safetensors" and done.about["output"]["name"] == "features"


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
def test_torchscript_takes_batches_of_any_size(saved: Callable, half: bool) -> None:
    path = saved()
    images, logits = outputs(path)
    done = export_student(path, "torchscript", half=half)
    extra = {"fbt_plugins.json": ""}
    found = torch.jit.load(str(done.path), _extra_files=extra)(images[:3])
    assert found.dtype == torch.float32 and close(found, logits[:3], TOLERANCES["fp16" if half else "fp32"])
    assert json.loads(extra["fbt_plugins.json"])["preprocessing"]["transforms"] == PAD


@pytest.mark.slow
@pytest.mark.parametrize("features", [False, True], ids=["logits", "features"])
def test_torchscript_of_a_network_that_was_cut_by_its_trace(saved: Callable, features: bool) -> None:
    """Such a cut asks for the sizes of its images, which are no numbers while TorchScript traces."""
    mobilenet = dict(type="timm", name="mobilenetv3_small_050", num_classes=10)
    assert ARCHITECTURES.build(mobilenet).way == "traced"
    assert export_student(saved(mobilenet), "torchscript", features=features).about["checked"]


def test_a_network_of_ones_own_is_built_again_from_its_safetensors(saved: Callable, tmp_path: Path) -> None:
    """Which proves its cut, and that needs gradients."""
    (tmp_path / "theirs.py").write_text(THEIRS)
    path = saved(dict(type="module", path=f"{tmp_path / 'theirs.py'}:net", image_size=32, stages=2))
    images, logits = outputs(path)
    done = export_student(path, "safetensors")
    assert done.about["checked"] and close(load_student(done.path)[0](images), logits)


def test_plugins_that_a_runs_config_names_are_loaded_for_its_student(
    saved: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a folder, which is a run of one's own; a student's file alone has nothing imported."""
    (tmp_path / "named_by_a_run.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    path = saved()
    (path.parent / "config.py").write_text("custom_imports = dict(imports=['named_by_a_run'])\n")
    assert open_student(path).model and "named_by_a_run" not in sys.modules
    assert open_student(path.parent).model and "named_by_a_run" in sys.modules
    (path.parent / "config.py").write_text("custom_imports = dict(imports=['no_such_plugin'])\n")
    with pytest.raises(FBTError, match="custom_imports: plugin 'no_such_plugin"):
        export_student(path.parent)


def test_what_lies_beside_says_how_images_are_made(saved: Callable) -> None:
    done = export_student(saved(), "torchscript")
    about = json.loads(done.path.with_name("student.pt.json").read_text())
    assert about["input"]["shape"] == ["batch", 3, 32, 32] and about["output"]["shape"] == ["batch", 10]
    assert about["preprocessing"]["mean"] == [0.4] * 3 and about["preprocessing"]["std"] == [0.2] * 3
    assert about["preprocessing"]["transforms"] == PAD and about["classes"] == CLASSES
    assert 0 <= min(about["checked"].values()) <= max(about["checked"].values()) <= about["tolerance"]


def test_other_outputs_than_the_runs_leave_no_file(saved: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that looks at how many images there are, which a trace cannot."""
    path = saved()
    forward = exporting._Graph.forward
    monkeypatch.setattr(exporting._Graph, "forward", lambda self, images: forward(self, images) * (len(images) / 5))
    with pytest.raises(
        FBTError, match=r"^torchscript, run by torch .*: outputs differ from the run's by .*no file is left"
    ):
        export_student(path, "torchscript")
    assert [p.name for p in path.parent.rglob("*") if p.is_file()] == ["student.safetensors"]


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
def test_onnxruntime_gives_what_pytorch_gives(saved: Callable, half: bool) -> None:
    pytest.importorskip("onnxscript")
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    path = saved(RESMLP)
    images, logits = outputs(path)
    done = export_student(path, "onnx", half=half)
    session = onnxruntime.InferenceSession(str(done.path))
    for size in (1, 4):
        (found,) = session.run(["logits"], {"images": images[:size].numpy()})
        assert close(torch.from_numpy(found), logits[:size], TOLERANCES["fp16" if half else "fp32"])
    (told,) = (entry.value for entry in onnx.load(done.path).metadata_props if entry.key == "fbt_plugins")
    assert json.loads(told)["classes"] == CLASSES


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("config", [CNN, CONVNEXT, RESMLP, SWIN, VIT], ids=lambda config: config["name"])
def test_every_family_in_every_format(saved: Callable, config: dict[str, Any], form: str) -> None:
    if form == "onnx":
        for module in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(module)
    path = saved(config)
    for features in (False, True):
        done = export_student(path, form, features=features)
        assert done.path.is_file() and done.about["checked"]


# ---- the command ----------------------------------------------------------------------------------------------------


def test_the_command_says_what_it_wrote_and_writes_over_nothing(
    saved: Callable, tool: Callable[..., Done], tmp_path: Path
) -> None:
    folder, out = saved().parent, tmp_path / "x" / "s.pt"
    done = tool("export", folder, "--format", "torchscript", "--out", out)
    assert done.code == 0 and out.is_file() and out.with_name("s.pt.json").is_file(), done.err
    assert "checked  by torch" in done.out and "batch x 3 x 32 x 32" in done.out
    again = tool("export", folder, "--format", "torchscript", "--out", out)
    assert again.code == 2 and again.err == f"error: --out {out}: it exists; remove it, or write to another file\n"


def test_where_it_goes_is_looked_at_before_any_work(
    saved: Callable, tool: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where rights forbid nothing, as root's do not: a file is in the way here."""
    folder, way = saved().parent, tmp_path / "file"
    way.touch()
    monkeypatch.setattr("fbt_plugins.engine.finished.exporting.open_student", None)
    code, _, err = tool("export", folder, "--out", way / "s.safetensors")
    assert code == 2 and err.startswith(f"error: --out {way}/s.safetensors: it cannot be written ({way}: Not a dir")
    (tmp_path / "s.safetensors.json").touch()
    code, _, err = tool("export", folder, "--out", tmp_path / "s.safetensors")
    assert code == 2 and err.startswith(f"error: --out {tmp_path}/s.safetensors.json: it exists; remove it")


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (["nowhere"], "run 'nowhere': no such folder"),
        (["{empty}"], "run '{empty}': no student.safetensors in it: it is no run's folder"),
        (["{unended}"], "run '{unended}': no student.safetensors in it: its training has not ended"),
        (["{config}"], "run '{config}': a run is the folder that a training left, and this is a config"),
        (["{run}", "--format", "tflite"], "argument --format: invalid choice: 'tflite'"),
        (["{run}", "--out", "s.bin"], "--out s.bin: a file of the format safetensors is called NAME.safetensors"),
    ],
)
def test_what_is_wrong_is_one_line(
    saved: Callable, tool: Callable[..., Done], tmp_path: Path, typed: list[str], line: str
) -> None:
    places = {name: tmp_path / name for name in ("empty", "unended", "run")}
    for name in ("empty", "unended"):
        places[name].mkdir()
    (tmp_path / "unended" / "config.py").touch()
    places["config"] = tmp_path / "unended" / "config.py"
    if "{run}" in typed:
        saved()
    code, out, err = tool("export", *(word.format(**places) for word in typed))
    assert code == 2 and not out and err.count("\n") == 1, err
    assert err.startswith(f"error: {line.format(**places)}")


def test_a_missing_extra_is_named(saved: Callable, tool: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    code, _, err = tool("export", saved().parent, "--format", "onnx")
    assert code == 2 and err == "error: onnx is not installed: pip install 'fbt-plugins[export]'\n"
