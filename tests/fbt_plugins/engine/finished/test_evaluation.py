"""A run that is tested again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from forked import Done

from fbt_plugins import FBTError
from fbt_plugins.engine.finished.evaluation import ClassFigures, Confusion
from fbt_plugins.engine.finished.evaluation import Tested as Found
from fbt_plugins.engine.metrics import Retrieval
from fbt_plugins.engine.runner import DistillRunner


def test_it_finds_what_the_run_found(whole: DistillRunner, tmp_path: Path, tool: Callable[..., Done]) -> None:
    done = tool("test", whole.work_dir, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "out" / "test.json").read_text())
    summary = json.loads((Path(whole.work_dir) / "summary.json").read_text())
    assert found["images"] == 20 and found["metrics"] == {k: summary[k] for k in found["metrics"]}
    assert {"student_top1", "teacher_top1", "fusion_top1", "student_top5"} <= found["metrics"].keys()
    for name in ("student", "teacher", "fusion"):
        counts = torch.tensor(found["confusion"][name]["counts"])
        assert int(counts.sum()) == 20
        assert 5 * int(counts.diag().sum()) == pytest.approx(summary[f"{name}_top1"])
        among = sum(row["images"] * (row["top5"] or 0) / 100 for row in found["per_class"][name])
        assert 5 * among == pytest.approx(summary[f"{name}_top5"])
    text = (tmp_path / "out" / "test.md").read_text()
    assert "## Each class: student" in text and "| T-shirt/top" in text and "## Confusion matrix" in text
    pytest.importorskip("matplotlib")
    assert (tmp_path / "out" / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_another_split_and_other_weights(whole: DistillRunner, tmp_path: Path, tool: Callable[..., Done]) -> None:
    """A student's file has no fusion model; the run's last checkpoint has one."""
    folder, names = Path(whole.work_dir), {}
    for name in ("student.safetensors", "epoch_3.pth"):
        out = tmp_path / name
        done = tool("test", folder, "--split", "val", "--checkpoint", folder / name, "--out", out)
        assert done.code == 0, done.err
        found = json.loads((out / "test.json").read_text())
        assert found["split"] == "val" and found["weights"] == str(folder / name)
        names[name] = list(found["models"])
    assert names == {
        "student.safetensors": ["student", "teacher"],
        "epoch_3.pth": ["student", "teacher", "fusion"],
    }


def test_what_compares_with_labelled_images_gets_them(
    whole: DistillRunner, tmp_path: Path, tool: Callable[..., Done]
) -> None:
    text = (Path(whole.work_dir) / "config.py").read_text()
    config = tmp_path / "bank.py"
    bank = "dict(val_dataloader, batch_size=10)"
    config.write_text(f"{text}\ntest_evaluator = [dict(type='TopK'), dict(type='KNN', k=3, bank={bank})]\n")
    done = tool("test", config, "--checkpoint", Path(whole.work_dir) / "epoch_3.pth", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "out" / "test.json").read_text())
    assert {"student_knn", "teacher_knn", "fusion_knn", "student_top1"} <= found["metrics"].keys()


def test_mistakes_by_hand() -> None:
    counted = Confusion()
    logits = torch.eye(3)[[0, 1, 1, 2, 0]]
    labels = torch.tensor([0, 1, 2, 2, -1])  # the last has none
    sample = {"labels": labels, "index": torch.arange(5), "student": logits, "features/student": torch.zeros(5, 2)}
    counted.process(None, [sample])
    assert list(counted.counts) == ["student"] and counted.table("student") == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    figures = counted.per_class("student", "abc")
    assert figures[1] == ClassFigures("b", 1, 100.0, None, 50.0)
    assert figures[2] == ClassFigures("c", 2, 50.0, None, 100.0)
    tested = Found("test", 4, Path("x"), {}, {}, "abc", {"student": counted.table("student")}, {})
    assert tested.mistakes("student", 5) == [("c", "b", 1)]


@pytest.mark.parametrize(
    ("name", "end"),
    [("student", r": training diverged; lower the learning rate \(fbt distill --lr\)$"), ("teacher", "$")],
)
def test_features_that_are_not_finite_say_why(name: str, end: str) -> None:
    metric = Retrieval()
    metric.process(
        None, [{"labels": torch.zeros(2), "index": torch.arange(2), f"features/{name}": torch.ones(2, 2) / 0}]
    )
    with pytest.raises(FBTError, match=f"Retrieval: features of the {name} are not finite{end}"):
        metric.compute_metrics(metric.results)


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (["{empty}"], "run '{empty}': no config.py in it: it is no run's folder"),
        (["{unended}"], "run '{unended}': no run has ended there; train first, or name weights with --checkpoint"),
        (["{run}", "--checkpoint", "x.pth"], "checkpoint 'x.pth': no such file"),
        (["{run}", "--out", "{empty}"], "--out {empty}: it exists; remove it, or write to another folder"),
        (["{run}", "--out", "/proc/out"], "--out /proc/out: it cannot be written (/proc: "),
        (["{run}", "--split", "train"], "argument --split: invalid choice: 'train'"),
    ],
)
def test_what_is_wrong_is_one_line(
    whole: DistillRunner, tmp_path: Path, tool: Callable[..., Done], typed: list[str], line: str
) -> None:
    places = {"run": Path(whole.work_dir), "empty": tmp_path / "empty", "unended": tmp_path / "unended"}
    for name in ("empty", "unended"):
        places[name].mkdir()
    (tmp_path / "unended" / "config.py").write_bytes((places["run"] / "config.py").read_bytes())
    code, out, err = tool("test", *(word.format(**places) for word in typed))
    assert code == 2 and not out and err.count("\n") == 1, err
    assert err.startswith(f"error: {line.format(**places)}")
