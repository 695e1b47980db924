"""Tables of a model's stages and splices, and of all that can be cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RESMLP, VIT

from fbt_plugins import ARCHITECTURES, FUSIONS, ConfigError
from fbt_plugins.analysis import coverage
from fbt_plugins.analysis.inspection import splice_rows, stage_rows
from fbt_plugins.models.declaration import Catalogue

RESNET18 = dict(type="timm", name="resnet18", num_classes=10)


def test_stages_have_their_shapes_parameters_and_operations() -> None:
    rows = stage_rows(ARCHITECTURES.build(RESNET18), (32, 32))
    assert [r["part"] for r in rows] == ["stage 1", "stage 2", "stage 3", "stage 4", "head"]
    assert rows[0]["output"] == "NCHW 64 x 8x8" and rows[0]["family"] == "cnn"
    stem, blocks = 3 * 64 * 49 * 16 * 16, 4 * 64 * 64 * 9 * 8 * 8
    assert rows[0]["macs"] == stem + blocks
    assert rows[0]["parameters"] == 3 * 64 * 49 + 2 * 64 + 4 * (64 * 64 * 9 + 2 * 64)
    assert rows[4] == {
        "part": "head", "output": "512 features, 10 logits", "family": "", "parameters": 5130, "macs": 5120,
    }  # fmt: skip


def test_operations_grow_with_the_image_and_not_with_how_often_one_asks() -> None:
    model = ARCHITECTURES.build(RESNET18)
    small, large = model.macs_at((32, 32)), model.macs_at((64, 64))
    assert [b / a for a, b in zip(small, large, strict=True)] == [4, 4, 4, 4, 1]
    assert model.macs_at((32, 32)) == small


def test_every_splice_of_a_pair_is_there_with_what_it_adds() -> None:
    student, teacher = ARCHITECTURES.build(RESMLP), ARCHITECTURES.build(VIT)
    rows = splice_rows(student, teacher, FUSIONS.build(dict(type="L2GFusion")), (32, 32))
    assert len(rows) == 20 and not any(r["refused"] for r in rows)
    by_name = {r["splice"]: r for r in rows}
    assert by_name["S1-3+T4"]["macs"] > teacher.macs_at((32, 32))[3] + teacher.macs_at((32, 32))[4]
    assert by_name["S1-3+T4"]["junctions"] < by_name["T1+S2-3+T4"]["junctions"]
    assert [r["splice"] for r in rows[:8]] == [
        "S1+T2-4", "S1-2+T3-4", "S1-3+T4", "S1-4+Thead", "T1+S2-4", "T1-2+S3-4", "T1-3+S4", "T1-4+Shead",
    ]  # fmt: skip


def test_a_strategy_that_does_not_fit_is_a_reason_not_a_crash() -> None:
    class Wrong:
        def build(self, student_specs, teacher_specs, splice):  # type: ignore[no-untyped-def]
            if splice.start.owner == "T":
                raise ConfigError("no way back")
            return torch.nn.ModuleDict({j.name: torch.nn.Identity() for j in splice.junctions})

    rows = splice_rows(ARCHITECTURES.build(RESMLP), ARCHITECTURES.build(VIT), Wrong(), (32, 32), (1,))
    assert "gives (2, 64, 16) for a batch of 2; the next stage takes (2, 17, 24)" in rows[0]["refused"]
    assert rows[-1]["refused"].endswith("): no way back") and rows[-1]["junctions"] is None


# ---- coverage -------------------------------------------------------------------------------------------------------


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An architecture that can name three models, one of which cannot be cut; what is asked of it."""
    asked: list[str] = []

    def build(name: str, num_classes: int) -> Any:
        asked.append(name)
        if name == "bad":
            raise ConfigError("bad: two tensors cross")
        return ARCHITECTURES.build(dict(type="timm", name=name, num_classes=num_classes))

    build.catalogue = Catalogue(lambda: ["test_resnet", "test_vit", "bad"], lambda n: "x/Net")  # type: ignore[attr-defined]
    monkeypatch.setitem(ARCHITECTURES.module_dict, "library", build)
    return asked


def run(state: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[dict[str, Any]]:
    """As the tool does it, but in this process."""

    class Pool:
        def __init__(self, *args: Any, **kwargs: Any) -> None: ...
        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *error: object) -> None: ...
        def submit(self, work: Any, *job: Any) -> Any:
            from concurrent.futures import Future

            future: Future[Any] = Future()
            future.set_result(coverage.take(*job))
            return future

        def shutdown(self, **options: Any) -> None: ...

    monkeypatch.setattr(coverage, "ProcessPoolExecutor", Pool)
    settings: dict[str, Any] = dict(workers=1, largest=100.0)
    return [row for _, _, row in coverage.cover(["library"], state, **settings | options)]


def test_models_are_cut_and_the_smallest_of_a_kind_is_proved(
    library: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = run(tmp_path / "state.jsonl", monkeypatch)
    cut = {r["name"]: r for r in rows if r["step"] == "cut"}
    assert cut["bad"]["refused"] == "bad: two tensors cross" and "refused" not in cut["test_resnet"]
    assert cut["test_vit"]["family"] == "attention" and cut["test_vit"]["way"] == "declared"
    (proof,) = [r for r in rows if r["step"] == "proof"]
    assert proof["name"] == min(("test_resnet", "test_vit"), key=lambda n: cut[n]["parameters"])
    assert proof["proof"]["gradients"] > 0 and library.count("test_resnet") + library.count("test_vit") == 3

    text = coverage.markdown(rows)
    assert "2 of 3 models are cut, of 1 of 1 kinds; 1 kinds are proved, 0 proofs failed." in text
    assert "| bad     | two tensors cross |" in text


def test_a_report_goes_on_where_it_stopped(library: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = tmp_path / "state.jsonl"
    rows = run(state, monkeypatch)
    lines = state.read_text().splitlines()
    state.write_text("\n".join([*lines[:2], lines[2][:20]]))  # killed while it wrote the third
    library.clear()
    again = run(state, monkeypatch)
    first, second = (json.loads(line)["name"] for line in lines[:2])
    assert first not in library[:1] and library[0] not in (first, second)
    assert {(r["step"], r["name"]) for r in again} == {(r["step"], r["name"]) for r in rows}


def test_a_proof_that_fails_is_shouted(library: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = run(tmp_path / "state.jsonl", monkeypatch)
    for row in rows:
        if row["step"] == "proof":
            del row["proof"]
            row["wrong"] = "logits differ"
    text = coverage.markdown(rows)
    assert "1 proofs failed" in text and "WRONG: logits differ" in text


def test_our_architectures_can_name_their_models() -> None:
    found = coverage.catalogues()
    assert set(found) == {"timm", "torchvision"}
    assert "resnet18" in list(found["timm"].names()) and found["timm"].kind("deit_tiny_patch16_224").startswith("deit/")
    assert (
        len(list(found["torchvision"].names())) >= 80 and found["torchvision"].kind("vit_b_16") == "vision_transformer"
    )
