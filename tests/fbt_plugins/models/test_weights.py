import hashlib
import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import RESMLP
from safetensors.torch import save_file

from fbt_plugins import ARCHITECTURES
from fbt_plugins.engine.finished.student import save_student
from fbt_plugins.errors import FBTError
from fbt_plugins.files import AtomicBackend
from fbt_plugins.models.weights import embedded_manifest, find_weights, load_plain, load_weights, read_weights


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


def a_checkpoint(folder: Path) -> tuple[Path, Path]:
    """One as a run writes it, and one as torch does."""
    file = io.BytesIO()
    torch.save(dict(model={f"w{i}": torch.randn(40, 40) for i in range(3)}, meta=dict(iter=3)), file)
    AtomicBackend().put(file.getvalue(), folder / "signed.pth")
    (folder / "plain.pth").write_bytes(file.getvalue())
    return folder / "signed.pth", folder / "plain.pth"


def test_a_signed_checkpoint_is_one_that_torch_loads(tmp_path: Path) -> None:
    signed, plain = a_checkpoint(tmp_path)
    assert signed.read_bytes()[: plain.stat().st_size - 2] == plain.read_bytes()[:-2] != b""
    for path in (signed, plain):
        for found in (load_plain(path), torch.load(path, weights_only=True), torch.load(path, mmap=True)):
            assert found["meta"] == dict(iter=3)
    torch.save(dict(iter=3), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert load_plain(tmp_path / "old.pth") == dict(iter=3)


@pytest.mark.parametrize("cut", [1, 2, 30, 200, 5000])
def test_a_checkpoint_that_was_cut_is_one_line(cut: int, tmp_path: Path) -> None:
    for path in a_checkpoint(tmp_path):
        path.write_bytes(path.read_bytes()[:-cut])
        with pytest.raises(FBTError, match=r"(plain|signed)\.pth': truncated, or"):
            load_plain(path)


def test_no_flipped_byte_and_no_zeroed_block_is_loaded(tmp_path: Path) -> None:
    path, _ = a_checkpoint(tmp_path)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    ends = [*range(40), *range(len(whole) - 130, len(whole))]
    for offset in [*ends, *random.integers(len(whole), size=200)]:
        damaged = bytearray(whole)
        damaged[offset] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(FBTError, match=r"signed\.pth") as caught:
            load_plain(path)
        assert len(caught.value.lines()) == 1
    for offset in random.integers(len(whole) - 600, size=10):
        path.write_bytes(whole[:offset] + bytes(512) + whole[offset + 512 :])
        with pytest.raises(FBTError, match=r"signed\.pth"):
            load_plain(path)


def test_no_flipped_bit_of_a_tensor_is_loaded_from_torchs_own_file(tmp_path: Path) -> None:
    _, path = a_checkpoint(tmp_path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if "/data/" in entry.filename]
    for entry in entries:
        damaged = bytearray(whole)
        damaged[entry.header_offset + entry.file_size // 2] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(FBTError, match=r"plain\.pth': truncated, or damaged"):
            load_plain(path)


def test_no_flipped_byte_of_a_student_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    save_student(ARCHITECTURES.build(RESMLP), path, dict(classes=["a", "b"]))
    whole, (state, about) = path.read_bytes(), read_weights(str(path))
    start = 8 + int.from_bytes(whole[:8], "little")
    random = np.random.default_rng(0)
    for offset in [*range(8, start, 37), *random.integers(start, len(whole), size=20)]:
        damaged = bytearray(whole)
        damaged[offset] ^= 1
        path.write_bytes(damaged)
        try:
            found, told = read_weights(str(path))
        except FBTError as error:
            assert len(error.lines()) == 1
        else:  # what changed is a name: of a key that is not looked at, or of a tensor, which is then missed
            assert all(torch.equal(found[k], state[k]) for k in state if k in found) and told in (about, {})


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_weights_of_another_kind_of_number_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    net = timm.create_model("test_byobnet", num_classes=3)
    state = net.state_dict()
    name = next(name for name, value in state.items() if value.is_floating_point())
    torch.save(state | {name: state[name].to(dtype)}, tmp_path / "a.pth")
    with pytest.raises(FBTError, match=f"{name} is {dtype} in the file and torch.float32 in the model"):
        load_weights(net, str(tmp_path / "a.pth"), "test_byobnet")
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, tmp_path / "a.pth")
    load_weights(net, str(tmp_path / "a.pth"), "test_byobnet")


def test_counts_of_batches_may_be_missing_as_for_torch(tmp_path: Path) -> None:
    net = timm.create_model("test_byobnet", num_classes=3)
    counts = [name for name in net.state_dict() if name.endswith("num_batches_tracked")]
    torch.save({k: torch.zeros_like(v) for k, v in net.state_dict().items() if k not in counts}, tmp_path / "a.pth")
    net.load_state_dict(torch.load(tmp_path / "a.pth", weights_only=True))
    again = timm.create_model("test_byobnet", num_classes=3)
    load_weights(again, str(tmp_path / "a.pth"), "test_byobnet")
    assert counts and all(torch.equal(v, again.state_dict()[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize(
    "state", [{1: torch.zeros(1)}, {"a": torch.zeros(2).to_sparse()}, {"a": torch.zeros(1, device="meta")}, [1], {}]
)
def test_what_is_no_state_dict_is_one_line(state: object, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(FBTError, match="it holds no state dict"):
        read_weights(str(tmp_path / "a.pth"))


@pytest.mark.parametrize(
    "text", ["[]", "3", "{", '{"mean": ["a"]}', '{"std": [0.0]}', '{"mean": 3}', '{"input_size": "32"}']
)
def test_what_a_file_says_of_its_model_is_checked(text: str, tmp_path: Path) -> None:
    save_file(dict(a=torch.zeros(1)), tmp_path / "a.safetensors", metadata={"fbt_plugins": text})
    with pytest.raises(FBTError, match="what it says about its model is damaged"):
        read_weights(str(tmp_path / "a.safetensors"))


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


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"hello there", r"truncated, or not a checkpoint \(no file of torch's begins b'he'\)"),
        (b"", "truncated, or not a checkpoint"),
        (b"PK\x03\x04 half a zip", r"truncated, or not a checkpoint \(its end is missing\)"),
    ],
)
def test_what_torch_never_wrote_is_not_called_more_than_tensors(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(FBTError, match=reason):
        load_plain(tmp_path / "x.pth")


def test_files_of_both_of_torchs_formats_are_read(tmp_path: Path) -> None:
    for name, archive in (("new.pth", True), ("old.pth", False)):
        torch.save(dict(a=torch.ones(2)), tmp_path / name, _use_new_zipfile_serialization=archive)
        assert torch.equal(load_plain(tmp_path / name)["a"], torch.ones(2))
    torch.save(dict(a=Path()), tmp_path / "code.pth")
    with pytest.raises(FBTError, match="it holds more than tensors and plain values"):
        load_plain(tmp_path / "code.pth")
