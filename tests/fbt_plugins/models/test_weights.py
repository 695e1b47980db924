import hashlib
import os
from pathlib import Path

import pytest
import timm
import torch
from conftest import RESMLP
from safetensors.torch import save_file

from fbt_plugins import ARCHITECTURES
from fbt_plugins.engine.hooks.checkpoints import save_student
from fbt_plugins.errors import FBTError
from fbt_plugins.models.weights import embedded_manifest, find_weights, load_weights, read_weights


def test_every_format_gives_the_same_weights(tmp_path: Path) -> None:
    net = timm.create_model("resnet18", num_classes=3)
    state = net.state_dict()
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pth")
    torch.save(dict(state_dict=state, epoch=3), tmp_path / "c.pth")
    run = {f"student.net.{k}": v for k, v in state.items()} | {"fusions.x": torch.zeros(1)}
    torch.save(dict(state_dict=run, meta={}, message_hub={}), tmp_path / "d.pth")
    for name in ("a.safetensors", "b.pth", "c.pth", "d.pth"):
        other = timm.create_model("resnet18", num_classes=3)
        load_weights(other, str(tmp_path / name), "resnet18")
        assert all(torch.equal(state[k], v) for k, v in other.state_dict().items()), name


def test_a_student_file_brings_its_normalisation_and_input_size(tmp_path: Path) -> None:
    model = ARCHITECTURES.build(dict(RESMLP, mean=(0.1,) * 3, std=(0.2,) * 3, img_size=48, input_size=48))
    save_student(model, tmp_path / "s.safetensors", dict(classes=["a", "b"]))
    assert read_weights(str(tmp_path / "s.safetensors"))[1]["classes"] == ["a", "b"]
    again = ARCHITECTURES.build(dict(RESMLP, img_size=48, checkpoint=str(tmp_path / "s.safetensors")))
    assert (list(again.mean), list(again.std), again.input_size) == ([0.1] * 3, [0.2] * 3, (48, 48))
    told = ARCHITECTURES.build(dict(RESMLP, img_size=48, mean=(0.5,) * 3, checkpoint=str(tmp_path / "s.safetensors")))
    assert told.mean == (0.5,) * 3


def test_a_file_of_another_model_is_told_so(tmp_path: Path) -> None:
    save_student(ARCHITECTURES.build(RESMLP), tmp_path / "s.safetensors", {})
    with pytest.raises(FBTError, match=r"missing \(.*unknown \(.*; the file is of resmlp_s4_patch4_32$"):
        load_weights(timm.create_model("test_vit", num_classes=10), str(tmp_path / "s.safetensors"), "test_vit")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "truncated, or not a checkpoint"),
        (b"PK\x03\x04 half a zip", "truncated, or not a checkpoint"),
        ({"weights": [1, 2]}, "no state dict"),
        ({"conv.weight": torch.zeros(1)}, "is it another model's?"),
        ({"head.weight": torch.zeros(100, 16)}, "head.weight is (100, 16) in the file and (10, 16) in the model"),
    ],
)
def test_a_foreign_file_is_one_line(tmp_path: Path, content: object, reason: str) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(FBTError) as error:
        ARCHITECTURES.build(dict(RESMLP, checkpoint=str(path)))
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "pwned"),)

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(FBTError, match="not loaded"):
        ARCHITECTURES.build(dict(RESMLP, checkpoint=str(tmp_path / "evil.pth")))
    assert not (tmp_path / "pwned").exists()


def test_a_truncated_file_is_one_line(tmp_path: Path) -> None:
    save_file(dict(a=torch.zeros(1000)), tmp_path / "a.safetensors")
    data = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(data[:-100])
    with pytest.raises(FBTError, match="not a whole safetensors file") as error:
        read_weights(str(tmp_path / "a.safetensors"))
    assert "\n" not in str(error.value)


def test_what_is_shipped_is_what_the_manifest_says() -> None:
    manifest = embedded_manifest()
    assert "convnext_fashion_mnist" in manifest
    for name, entry in manifest.items():
        path = find_weights(f"embedded:{name}")
        assert hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"]
        assert path.stat().st_size < 4_000_000
        assert {"accuracy", "mean", "std", "recipe"} <= entry.keys()


def test_a_shipped_file_that_was_changed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "manifest.json").write_text('{"toy": {"sha256": "0000"}}')
    (tmp_path / "toy.safetensors").write_bytes(b"something else")
    monkeypatch.setattr("fbt_plugins.models.weights.embedded_folder", lambda: tmp_path)
    with pytest.raises(FBTError, match="sha256 differs"):
        find_weights("embedded:toy")
