"""A student's file, read by others: the same network, the same images, the same accuracy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import RESMLP
from PIL import Image
from safetensors.torch import save_file

from fbt_plugins import ARCHITECTURES, FBTError, load_student
from fbt_plugins.data import FashionMNISTMini
from fbt_plugins.engine.hooks.checkpoints import save_student
from fbt_plugins.engine.runner import DistillRunner
from fbt_plugins.engine.student import about_student


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
