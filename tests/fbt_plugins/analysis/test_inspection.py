"""Stage tables and splices of a pair, against numbers worked by hand."""

from __future__ import annotations

import torch
from conftest import RESMLP, VIT

from fbt_plugins import ARCHITECTURES, FUSIONS, ConfigError
from fbt_plugins.analysis.inspection import splice_rows, stage_rows

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
