"""The report over whole libraries: taken up where it stopped, every model cut or refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fbt_plugins import ARCHITECTURES, ConfigError
from fbt_plugins.analysis import coverage
from fbt_plugins.models.declaration import Catalogue


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
