"""Tables of a model's stages and splices, of all that can be cut, and maps of CKA between stages."""

from __future__ import annotations

import json
from concurrent.futures.process import BrokenProcessPool
from itertools import pairwise, permutations
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CNN, CONVNEXT, RESMLP, VIT
from fbt_architectures import libraries
from runs import Build, run
from torch import Tensor

from fbt_plugins import ARCHITECTURES, FUSIONS, ConfigError
from fbt_plugins.analysis import coverage
from fbt_plugins.analysis.cka import MinibatchCKA, StageSimilarity, centered_gram, stage_outputs
from fbt_plugins.analysis.inspection import splice_rows, stage_rows
from fbt_plugins.distill.distiller import Distiller
from fbt_plugins.errors import FBTError
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
        "part": "head", "output": "512 features, 10 logits", "family": "",
        "ends": "fc", "parameters": 5130, "macs": 5120,
    }  # fmt: skip
    assert [r["ends"] for r in rows[:4]] == [f"layer{n}.1.bn2" for n in (1, 2, 3, 4)]


def test_operations_grow_with_the_image_and_not_with_how_often_one_asks() -> None:
    model = ARCHITECTURES.build(RESNET18)
    small, large = model.macs_at((32, 32)), model.macs_at((64, 64))
    assert [b / a for a, b in zip(small, large, strict=True)] == [4, 4, 4, 4, 1]
    assert model.macs_at((32, 32)) == small


def test_every_splice_of_a_pair_is_there_with_what_it_adds() -> None:
    student, teacher = ARCHITECTURES.build(RESMLP), ARCHITECTURES.build(VIT)
    rows = splice_rows(student, teacher, FUSIONS.build(dict(type="L2GFusion")), (32, 32))
    assert len(rows) == 20 and not any(r["refused"] for r in rows)
    assert [r["splice"] for r in rows if r["auto"]] == ["S1-3+T4"]  # an MLP with attention
    by_name = {r["splice"]: r for r in rows}
    assert by_name["S1-3+T4"]["macs"] > teacher.macs_at((32, 32))[3] + teacher.macs_at((32, 32))[4]
    assert by_name["S1-3+T4"]["junctions"] < by_name["T1+S2-3+T4"]["junctions"]
    assert [r["splice"] for r in rows[:8]] == [
        "S1+T2-4", "S1-2+T3-4", "S1-3+T4", "S1-4+Thead", "T1+S2-4", "T1-2+S3-4", "T1-3+S4", "T1-4+Shead",
    ]  # fmt: skip


def test_auto_is_among_the_splices_whoever_is_the_cnn_and_however_many_stages_they_have() -> None:
    six = dict(CONVNEXT, depths=(1, 2, 2, 1), stages=6)
    models = [ARCHITECTURES.build(config) for config in (RESMLP, CONVNEXT, six)]
    strategy = FUSIONS.build(dict(type="L2GFusion"))
    for student, teacher, auto in (0, 1, "T1-3+S4"), (1, 0, "S1-3+T4"), (0, 2, "T1-5+S4"), (2, 0, "S1-5+T4"):
        rows = splice_rows(models[student], models[teacher], strategy, (32, 32), [1])
        assert [r["splice"] for r in rows if r["auto"]] == [auto]
        assert len({r["splice"] for r in rows}) == len(rows)


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


def tried(state: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[dict[str, Any]]:
    """As the tool does it, but in this process."""

    class Pool:
        def __init__(self, *args: Any, **kwargs: Any) -> None: ...
        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *error: object) -> None: ...
        def submit(self, work: Any, *job: Any) -> Any:
            from concurrent.futures import Future

            future: Future[Any] = Future()
            try:
                future.set_result(coverage.steps(*job))
            except BrokenProcessPool as error:
                future.set_exception(error)
            return future

        def shutdown(self, **options: Any) -> None: ...

    monkeypatch.setattr(coverage, "ProcessPoolExecutor", Pool)
    settings: dict[str, Any] = dict(workers=1, largest=100.0)
    return [row for _, _, row in coverage.cover(coverage.names_of(["library"]), state, **settings | options)]


def test_a_process_that_was_killed_is_a_line_and_nothing_is_lost(
    library: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, take = tried(tmp_path / "whole.jsonl", monkeypatch), coverage.take

    def killed(step: str, type_: str, name: str) -> dict[str, Any]:
        if name == "bad":
            raise BrokenProcessPool
        return take(step, type_, name)

    monkeypatch.setattr(coverage, "take", killed)
    state = tmp_path / "state.jsonl"
    with pytest.raises(
        FBTError, match=r"ended from outside.*state\.jsonl has what is done: give the same command again"
    ):
        tried(state, monkeypatch)
    kept = state.read_text()
    monkeypatch.setattr(coverage, "take", take)
    rows = tried(state, monkeypatch)
    assert state.read_text().startswith(kept)
    assert {(r["step"], r["name"]) for r in rows} == {(r["step"], r["name"]) for r in whole}


def test_models_are_cut_and_the_smallest_of_a_kind_is_proved(
    library: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tried(tmp_path / "state.jsonl", monkeypatch)
    cut = {r["name"]: r for r in rows if r["step"] == "cut"}
    assert cut["bad"]["refused"] == "two tensors cross" and "refused" not in cut["test_resnet"]
    assert cut["test_vit"]["family"] == "attention" and cut["test_vit"]["way"] == "declared"
    (proof,) = [r for r in rows if r["step"] == "proof"]
    assert proof["name"] == min(("test_resnet", "test_vit"), key=lambda n: cut[n]["parameters"])
    assert proof["proof"]["gradients"] > 0 and library.count("test_resnet") + library.count("test_vit") == 3

    text = coverage.markdown(rows)
    assert "2 of 3 models are cut, of 1 of 1 kinds; 1 kinds are proved, 0 proofs failed." in text
    assert "| bad     | two tensors cross |" in text


def test_a_report_goes_on_where_it_stopped(library: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = tmp_path / "state.jsonl"
    rows = tried(state, monkeypatch)
    lines = state.read_text().splitlines()
    state.write_text("\n".join([*lines[:2], lines[2][:20]]))  # killed while it wrote the third
    library.clear()
    again = tried(state, monkeypatch)
    first, second = (json.loads(line)["name"] for line in lines[:2])
    assert first not in library[:1] and library[0] not in (first, second)
    assert {(r["step"], r["name"]) for r in again} == {(r["step"], r["name"]) for r in rows}


def test_a_proof_that_fails_is_shouted(library: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tried(tmp_path / "state.jsonl", monkeypatch)
    for row in rows:
        if row["step"] == "proof":
            del row["proof"]
            row["wrong"] = "logits differ"
    text = coverage.markdown(rows)
    assert "1 proofs failed" in text and "WRONG: logits differ" in text


def test_networks_of_libraries_are_counted_by_library() -> None:
    row: dict[str, Any] = {"type": "module", "step": "cut", "kind": "k", "way": "traced", "family": "cnn"}
    rows = [row | {"name": name} for name in ("a/one", "a/two", "b/three")]
    rows[1]["refused"] = "two tensors cross"
    proof = {"gradients": 1, "buffers": 0}
    rows += [{"type": "module", "step": "proof", "name": "a/one", "proof": proof}]
    rows += [{"type": "module", "step": "proof", "name": "b/three", "wrong": "logits differ"}]
    rows += [row | {"name": "b/four"}, {"type": "module", "step": "proof", "name": "b/four", "refused": "needs a GPU"}]
    assert "cut, but not proved: needs a GPU" in coverage.markdown(rows)
    lines = [line.split("|")[1:-1] for line in coverage.markdown(rows).splitlines() if line.startswith("| ")]
    table = {name.strip(): [int(number) for number in numbers] for name, *numbers in lines[1:4]}
    assert table == {"a": [2, 1, 1, 0], "b": [2, 2, 0, 1], "all": [4, 3, 1, 1]}


def test_our_architectures_can_name_their_models() -> None:
    found = coverage.catalogues()
    assert set(found) == {"timm", "torchvision", "module"}
    assert "resnet18" in list(found["timm"].names()) and found["timm"].kind("deit_tiny_patch16_224").startswith("deit/")
    assert (
        len(list(found["torchvision"].names())) >= 80 and found["torchvision"].kind("vit_b_16") == "vision_transformer"
    )


def test_networks_of_a_library_are_listed_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def small() -> torch.nn.Module:
        layers = [torch.nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise((3, 4, 4, 4, 4))]
        return torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 10))

    def rows() -> Any:
        yield "Small", libraries.Network(32, small)
        yield "Broken", libraries.Network(32, lambda: torch.nn.Identity(1 / 0))

    monkeypatch.setattr(libraries, "LIBRARIES", {"torch": rows, "not_installed": rows})
    libraries._networks.cache_clear()
    assert coverage.names_of(["module"], ["torch"]) == [("module", "torch/Small"), ("module", "torch/Broken")]
    assert coverage.names_of(None, ["not_installed"]) == []
    cut, proof = (coverage.take(step, "module", "torch/Small") for step in ("cut", "proof"))
    assert cut["way"] == "traced" and proof["proof"]["gradients"] == 10
    refused = coverage.take("cut", "module", "torch/Broken")["refused"]
    assert refused.startswith("its factory fails, ZeroDivisionError at ")


# ---- cka ------------------------------------------------------------------------------------------------------------


def cka(*batches: tuple[Tensor, Tensor]) -> float:
    """Of two stages."""
    measure = MinibatchCKA()
    for x, y in batches:
        measure.add({"x": x, "y": y})
    return measure.result()[0, 1].item()


def hsic(x: Tensor, y: Tensor) -> float:
    """HSIC_1 as arXiv 2010.15327 writes it (eq. 3): matrices with ones, not centring."""
    n = len(x)
    k, l = (z.double() @ z.double().T for z in (x, y))  # noqa: E741
    k, l = k - k.diag().diag(), l - l.diag().diag()  # noqa: E741
    one = torch.ones(n, 1, dtype=torch.float64)
    both = (one.T @ k @ one).item() * (one.T @ l @ one).item() / ((n - 1) * (n - 2))
    return (torch.trace(k @ l).item() + both - 2 / (n - 2) * (one.T @ k @ l @ one).item()) / (n * (n - 3))


def features(n: int, width: int, seed: int) -> Tensor:
    return torch.randn(n, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_hand_worked() -> None:
    """x = 0, 0, 1, 1 and z = 0, 0, 1, 2: off the diagonal K has a pair of ones, L a pair of twos, both of images 3, 4.

    tr KK = 2, 1'K1 = 2, 1'KK1 = 2: HSIC(x, x) = (2 + 2 * 2 / (3 * 2) - 2 * 2 / 2) / (4 * 1) = 1 / 6; L = 2 K.
    And y = 0, 1, 1, 1 with ones for all of 2, 3, 4: tr KL = 2, 1'L1 = 6, 1'KL1 = 4, HSIC(x, y) = (2 + 2 - 4) / 4 = 0.
    """
    x, y, z = (torch.tensor(v, dtype=torch.float64)[:, None] for v in ([0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 1, 2]))
    assert [hsic(x, x), hsic(x, y), hsic(x, z)] == pytest.approx([1 / 6, 0, 1 / 3])
    assert (centered_gram(x) * centered_gram(z)).sum().item() / 4 == pytest.approx(1 / 3)
    assert cka((x, z)) == pytest.approx(1.0)


@pytest.mark.parametrize("sizes", [(4, 3, 2), (9, 5, 5), (40, 7, 300)])
def test_one_batch_is_the_published_formula(sizes: tuple[int, int, int]) -> None:
    n, a, b = sizes
    x = features(n, a, 0)
    y = torch.cat([x[:, :2] ** 2 + x[:, :2], features(n, b, 1)], 1) + 5
    expected = hsic(x, y) / sqrt(hsic(x, x) * hsic(y, y))
    assert cka((x, y)) == pytest.approx(expected, abs=1e-9)
    assert cka((x.float(), y.float())) == pytest.approx(expected, abs=1e-4)


def test_several_batches_are_the_mean_of_each_hsic() -> None:
    x, y = features(30, 4, 0), features(30, 6, 1).cumsum(1)
    y[:, :4] += x
    parts = [(x[i : i + 10], y[i : i + 10]) for i in (0, 10, 20)]
    xy, xx, yy = (sum(hsic(p[a], p[b]) for p in parts) for a, b in ((0, 1), (0, 0), (1, 1)))
    assert cka(*parts) == pytest.approx(xy / sqrt(xx * yy))


def test_the_mean_over_all_batches_is_the_whole() -> None:
    """HSIC_1 is a U-statistic: its mean over all batches of 4 of 6 images is that of the 6 images, exactly."""
    x, y = features(6, 3, 0), features(6, 2, 1)
    batches = [(x[list(s)], y[list(s)]) for s in permutations(range(6), 4) if list(s) == sorted(s)]
    assert len(batches) == 15 and cka(*batches) == pytest.approx(cka((x, y)))


def test_what_it_does_not_see() -> None:
    """Rotations, one scale for all, an offset, and the layout of an image's activations."""
    x = features(12, 6, 0)
    rotation = torch.linalg.qr(features(6, 6, 1)).Q
    for same in (x, x @ rotation, -3 * x, x + 7, x[:, [5, 4, 3, 2, 1, 0]]):
        assert cka((x, same)) == pytest.approx(1.0)
    assert cka((x.reshape(12, 2, 3), x.reshape(12, 3, 1, 2))) == pytest.approx(1.0)
    assert cka((x, x * torch.tensor([1.0, 9, 1, 1, 1, 1]))) < 0.99
    assert torch.isfinite(torch.tensor(cka((1e3 + x.float(), x.float()))))


def test_independent_activations_are_zero_on_average_however_small_the_batches() -> None:
    """The biased estimator of 1905.00414 would give about 0.9 here."""
    x, y = features(4000, 50, 0), features(4000, 50, 1)
    assert abs(cka(*zip(x.split(8), y.split(8), strict=True))) < 0.01


# ---- stages of models ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("splice", "names"),
    [
        ("S1-3+T4", ["S1", "S2", "S3", "S3_T4", "T4"]),
        ("T1-3+S4", ["T1", "T2", "T3", "T3_S4", "S4"]),
        ("S1+T2+S3-4", ["S1", "S1_T2", "T2", "T2_S3", "S3", "S4"]),
        ("S1-4+Thead", ["S1", "S2", "S3", "S4", "S4_T5"]),
    ],
)
def test_a_fusion_models_stages_are_those_that_it_runs(
    make: object, images: torch.Tensor, splice: str, names: list[str]
) -> None:
    distiller: Distiller = make(CNN, CONVNEXT, splice).eval()  # type: ignore[operator]
    with torch.no_grad():
        outputs = stage_outputs(distiller, images)
        assert list(outputs["fusion"]) == names and list(outputs["teacher"]) == ["T1", "T2", "T3", "T4"]
        first = names[0][0] == "S"
        assert outputs["fusion"][names[0]] is outputs["student" if first else "teacher"][names[0]]
        last = outputs["fusion"][names[-1]]
        logits = distiller.fusions["fusion"].owners[0].head(last).logits
        assert torch.equal(logits, distiller.predict(images, ["fusion"])["fusion"])


def test_the_maps_of_a_run(config: Build) -> None:
    """Of the best weights, on validation images; the stages that F shares with T are 1 with themselves."""
    options = {"cka.images": 40, "cka.batch_size": 15, "train_cfg.max_epochs": 2, "val_dataloader.batch_size": 50}
    runner = run(config(**options))
    found = json.loads((Path(runner.work_dir) / "summary.json").read_text())["cka"]
    assert found["images"] == 30 and list(found["maps"]) == ["teacher_student", "teacher_fusion", "fusion_student"]
    shared = found["maps"]["teacher_fusion"]
    assert shared["columns"] == ["T1", "T2", "T3", "T3_S4", "S4"] and shared["rows"] == ["T1", "T2", "T3", "T4"]
    assert [shared["values"][i][i] for i in range(3)] == [1, 1, 1] and shared["values"][0][1] < 1
    again = StageSimilarity(40, 15).maps(runner.model, runner.val_dataloader.dataset)
    assert again == found


def test_the_student_alone_is_compared_with_nothing(config: Build) -> None:
    options = {f"model.{k}": None for k in ("teacher", "fusion", "feature_loss", "logit_loss")}
    runner = run(config(**options, **{"model.edges": [], "train_cfg.max_epochs": 1, "cka.images": 256}))
    assert json.loads((Path(runner.work_dir) / "summary.json").read_text())["cka"] is None


def test_without_a_fusion_model_there_is_one_map(make: object) -> None:
    distiller: Distiller = make(RESMLP, CONVNEXT, None, edges=["teacher_to_student"])  # type: ignore[operator]
    data = [dict(inputs=torch.rand(3, 32, 32), labels=0) for _ in range(9)]
    found = StageSimilarity(8, 4).maps(distiller, data)  # type: ignore[arg-type]
    assert found is not None and list(found["maps"]) == ["teacher_student"] and found["images"] == 8
    assert StageSimilarity(8, 4).maps(distiller, data[:3]) is None  # type: ignore[arg-type]


def test_a_stage_that_tells_no_images_apart_has_no_number(make: object) -> None:
    distiller: Distiller = make(RESMLP, CONVNEXT, None, edges=["teacher_to_student"])  # type: ignore[operator]
    found = StageSimilarity(8, 4).maps(distiller, [dict(inputs=torch.ones(3, 32, 32), labels=0)] * 8)  # type: ignore[arg-type]
    assert found is not None and found["maps"]["teacher_student"]["values"][0][0] is None


@pytest.mark.parametrize("numbers", [(512, 3), (100, 256)])
def test_numbers_without_a_batch_are_refused(numbers: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=r"cka: batch_size must be from 4 to images"):
        StageSimilarity(*numbers)
