"""tools/rank_splices.py as it is typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")

from fbt_plugins.files import append_line
from fbt_plugins.report import splice_ranking
from fbt_plugins.report.results import Trial

SPLICES = ["S1+T2-4", "S1-2+T3-4", "S1-3+T4", "T1-3+S4"]


def test_rankings_of_a_comparison(tool: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splice_ranking, "rank_correlations", partial(splice_ranking.rank_correlations, draws=100))
    folder = tmp_path / "splices"
    folder.mkdir()
    code, _, err = tool("rank_splices", folder)
    assert code == 2 and f"{folder}: no finished runs; expected is a trials.jsonl" in err
    (folder / "trials.jsonl").touch()
    code, _, err = tool("rank_splices", folder)
    assert code == 2 and "trainings of one pair, not of none" in err
    values = [[0.1 * (i + j) for j in range(4)] for i in range(4)]
    names = dict(
        models=["teacher", "student"],
        rows=[f"T{i + 1}" for i in range(4)],
        columns=[f"S{i + 1}" for i in range(4)],
        values=values,
    )
    cka = dict(images=8, maps=dict(teacher_student=names))
    for place, method in enumerate(["t_s", *SPLICES]):
        for seed in (0, 1):
            top1 = {"student": 80.0 + place + seed}
            curve = [{"epoch": 1, "student": 5.0 - place}]
            made = Trial("a_b", method, seed, "", top1, "test", None, curve, None, "", "", {}, cka=cka)
            append_line(folder / "trials.jsonl", made.line())
    search = tmp_path / "search.json"
    search.write_text(json.dumps(dict(one_shot=dict(top1={splice: -i for i, splice in enumerate(SPLICES)}))))
    code, out, err = tool("rank_splices", folder, "--one-shot", search)
    assert code == 0, err
    written = json.loads((folder / "splice_ranking.json").read_text())
    found = {row["predictor"]: row for row in written["rankings"]}
    assert found["another seed"]["one_seed"] == 1 and found["one shot 1"]["one_seed"] == -1
    # Compared are S1 and T1, S2 and T2, S3 and T3, T3 and S3.
    assert found["CKA at the junctions, of t_s"]["one_seed"] == pytest.approx(5 / 30**0.5)
    assert found["one shot 1"]["best"] == 81.5 and "| one shot 1 " in out
    # Students have 81 to 84, and 82 to 85; of two, validation chooses the worse one.
    assert written["random_search"] == {"1": 83.0, "2": pytest.approx((3 * 81.5 + 2 * 82.5 + 83.5) / 6), "3": 81.75}
    assert (folder / "splice_ranking.md").read_text() in out
    picture = (folder / "splice_ranking.svg").read_text()
    best_on_top = [picture.index(f">{splice}<") for splice in reversed(SPLICES)]
    assert best_on_top == sorted(best_on_top, reverse=True) and ">without F<" in picture
    several = tmp_path / "searches.jsonl"
    several.write_text("\n".join([search.read_text()] * 2))
    code, out, err = tool("rank_splices", folder, "--one-shot", several)
    assert code == 0 and "one shot 2" in out and "one shot, mean" in out, err
    search.write_text("{}")
    code, _, err = tool("rank_splices", folder, "--one-shot", search)
    assert code == 2 and "not the search.json of a one-shot search" in err
    append_line(folder / "trials.jsonl", replace(made, config="another").line())
    code, _, err = tool("rank_splices", folder)
    assert code == 2 and "trainings of several configs with one name and seed; keep the lines of one of them" in err
