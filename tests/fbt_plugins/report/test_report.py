"""Comparisons worked by hand, and their pages, from made-up trials."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from fbt_plugins.report import Trial, best_of, compare, paired, write_report
from fbt_plugins.report.cells import cells, columns, warnings
from fbt_plugins.report.figures import curves
from fbt_plugins.report.pages import markdown, page

# student's top-1 by method and seed
TOP1 = {
    "scratch": {0: 80.0, 1: 81.0, 2: 79.0},
    "kd": {0: 81.0, 1: 83.0, 2: 82.0},
    "t_s": {0: 82.0, 1: 83.0, 2: 81.5},
    "fbt": {0: 83.0, 1: 83.5, 2: 82.0},
}
ORDER = [("a_b", method) for method in TOP1]
CONTROLS = {"kd": "KD", "scratch": "the student alone", "t_s": "T→S only"}


def trial(method: str, seed: int, pair: str = "a_b", **changes: object) -> Trial:
    student = TOP1[method][seed]
    models = {"student": student} | ({} if method == "scratch" else {"teacher": 90.0})
    models |= {"fusion": 86.0 + seed} if method == "fbt" else {}
    made = Trial(
        pair=pair,
        method=method,
        seed=seed,
        about=f"about <{method}>",
        top1=models,
        split="test",
        images={"kd": 1000.0, "fbt": 800.0}.get(method, 1100.0),
        curve=[{"epoch": e, **{m: v - 10 + 5 * e for m, v in models.items()}} for e in (1, 2)],
        reference=dict(top1=81.61, source="a published table") if method == "fbt" else None,
        config="c0ffee",
        hardware="a CPU",
        about_run=dict(seconds=60.0, versions=dict(torch="2"), git=dict(commit="abcdef0123456789", changed=False)),
    )
    return replace(made, **changes)


TRIALS = [trial(method, seed) for method, seeds in TOP1.items() for seed in seeds]


# ---- arithmetic ------------------------------------------------------------------------------------------------------


def test_a_comparison() -> None:
    comparison = compare("grid", TRIALS, ORDER, [], CONTROLS)
    (pair,) = comparison.pairs
    rows = {row.method: row for row in pair.rows}
    assert list(rows) == list(TOP1) and pair.teacher == 90.0
    fbt = rows["fbt"]
    assert fbt.top1.mean == pytest.approx(82.8333, abs=1e-3) and fbt.fusion is not None and fbt.fusion.mean == 87.0
    to_scratch, to_t_s = fbt.differences["scratch"], fbt.differences["t_s"]
    assert to_scratch is not None and to_scratch.mean == pytest.approx((3.0 + 2.5 + 3.0) / 3)
    assert to_t_s is not None and to_t_s.mean == pytest.approx((1.0 + 0.5 + 0.5) / 3)
    assert "scratch" not in rows["scratch"].differences
    assert fbt.cost == pytest.approx(1.25) and rows["kd"].cost == 1.0
    assert comparison.gain("fbt", "scratch") == (pytest.approx(2.8333, abs=1e-3), 1)


def test_published_figures_of_what_was_not_run_stand_below_the_table() -> None:
    figures = dict(fbt=dict(top1=81.61, source="a published table"), pat=dict(top1=81.22, source="PAT"))
    comparison = compare("grid", TRIALS, ORDER, [], CONTROLS, {"a_b": figures, "a_c": figures})
    assert comparison.pairs[0].elsewhere == {"pat": dict(top1=81.22, source="PAT")}
    for text in (markdown(comparison, ""), page(comparison, "")):
        assert "Published, and not run here: pat 81.22 %." in text and "PAT: a_b/pat" in text
    assert "not run here" not in markdown(compare("grid", TRIALS, ORDER, [], CONTROLS), "")


def test_the_best_of_others_by_validation_is_a_method_too() -> None:
    """Validation, not test, chooses: of seed 0 kd (90 to 82), of seed 1 t_s; seed 2 lacks a run, seed 3 all."""
    runs = [trial("kd", 0, curve=[{"epoch": 1, "student": 90.0}]), trial("t_s", 0), trial("kd", 1), trial("kd", 2)]
    runs.append(trial("t_s", 1, curve=[{"epoch": 1, "student": 99.0}]))
    found = best_of(runs, "tried", "two tries", {seed: ["t_s", "kd"] for seed in range(4)})
    assert [(t.method, t.seed, t.student, t.about) for t in found] == [
        ("tried", 0, 81.0, "two tries"),
        ("tried", 1, 83.0, "two tries"),
    ]
    (pair,) = compare("grid", [*runs, *found], [("a_b", name) for name in ("t_s", "tried")], [], {"t_s": "T→S"}).pairs
    assert pair.rows[1].differences["t_s"] == paired({0: 81.0, 1: 83.0}, {0: 82.0, 1: 83.0})
    assert pair.rows[1].configs == 1 and pair.rows[1].cost is None


def test_controls_are_those_that_were_run_and_the_first_of_them_costs_1() -> None:
    """A step of T→S only is 1000 / 1100 of KD's, FBT's 1000 / 800."""
    trials = [t for t in TRIALS if t.method != "kd"]
    comparison = compare("grid", trials, ORDER, [], {"kd": "KD", "t_s": "T→S only", "nobody": "?"})
    assert list(comparison.controls) == ["t_s"] and columns(comparison)[-1] == "step time, T→S only\u00a0=\u00a01"
    costs = {row.method: row.cost for row in comparison.pairs[0].rows}
    assert costs == {"scratch": 1.0, "t_s": 1.0, "fbt": pytest.approx(1100 / 800)}
    bare = compare("grid", TRIALS, ORDER, [], {})
    assert len(columns(bare)) == len(cells(bare, bare.pairs[0].rows[0])) == 6


def test_a_fusion_model_that_stays_far_below_does_not_squeeze_the_curves() -> None:
    low = [replace(t, curve=[{**p, "fusion": 10.3} for p in t.curve]) if t.method == "fbt" else t for t in TRIALS]
    one, other = (curves(compare("grid", trials, ORDER, [], {}).pairs[0]) for trials in (TRIALS, low))
    assert one is not None and other is not None and "F below" not in one and ">F below: 10.3 %</text>" in other
    ticks = [re.findall(r">(\d+)</text>", svg) for svg in (one, other)]
    assert "20" not in ticks[1] and set(ticks[0]) == set(ticks[1])


def test_a_cost_is_only_known_on_the_same_hardware() -> None:
    elsewhere = [replace(t, hardware="a GPU") if t.method == "fbt" else t for t in TRIALS]
    rows = {row.method: row for row in compare("grid", elsewhere, ORDER, [], CONTROLS).pairs[0].rows}
    assert rows["fbt"].cost is None and rows["t_s"].cost == pytest.approx(1 / 1.1)


def test_teachers_of_one_student_are_compared_seed_by_seed(tmp_path: Path) -> None:
    """b's second teacher is 1, 2 and 3 points better in KD, which alone both pairs have with a teacher."""
    more = [
        trial("kd", seed, pair="c_b", top1={"student": TOP1["kd"][seed] + seed + 1, "teacher": 92.0})
        for seed in range(3)
    ]
    more += [trial("scratch", 0, pair="c_b"), trial("kd", 0, pair="a_d")]
    order = [*ORDER, ("c_b", "scratch"), ("c_b", "kd"), ("a_d", "kd")]
    comparison = compare("grid", [*TRIALS, *more], order, [], CONTROLS)
    (found,) = comparison.teachers
    assert found.student == "b" and list(found.differences) == ["kd"]
    difference = found.differences["kd"]["c_b"]
    assert found.differences["kd"]["a_b"] is None and difference is not None and difference.mean == 2.0
    write_report(tmp_path, comparison, "x")
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text()
        assert "Teachers of b" in text and "84.00 ± 1.73; +2.00 [-0.48, +4.48]" in text and "c (92.00 %)" in text
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["teachers"]["b"]["kd"]["c_b"]["mean"] == 2.0


# ---- pages -----------------------------------------------------------------------------------------------------------


def test_the_pages_say_the_same_and_need_nothing_else(tmp_path: Path) -> None:
    comparison = compare("grid", TRIALS, ORDER, ["a_b/ofa/seed 0"], CONTROLS)
    paths = write_report(tmp_path / "out", comparison, "python tools/compare.py configs/<grid>.py")
    assert [p.name for p in paths] == ["report.md", "report.json", "report.html"]
    markdown, data, page = (p.read_text() for p in paths)
    for text in (markdown, page):
        for shown in (
            "a → b, teacher 90.00 %",
            "82.83 ± 0.76",
            "+2.83 [+2.12, +3.55]",
            "81.61",
            "87.00 ± 1.00",
            "1.25",
        ):
            assert shown in text, shown
        for shown in ("Fewer than 5 seeds", "Not finished (1): a_b/ofa/seed 0", "a published table", "12 finished"):
            assert shown in text, shown
    assert "- written by: `python tools/compare.py configs/<grid>.py`" in markdown
    assert "<code>python tools/compare.py configs/&lt;grid&gt;.py</code>" in page
    assert "about &lt;fbt&gt;" in page and "<grid>" not in page
    row = json.loads(data)["pairs"][0]["rows"][3]
    assert row["differences"]["t_s"]["n"] == 3 and row["published"]["top1"] == 81.61
    assert not re.search(r"(?:src|href)=\"(?!data:|#)|@import|url\(", page)
    assert page.count("data:image/svg+xml;base64,") == 2 and "CKA" not in page


def test_a_row_says_which_splice_its_runs_had_where_its_words_do_not(tmp_path: Path) -> None:
    def row(about: str, splices: dict | None) -> str:
        trials = [replace(t, about=about, splices=splices) for t in TRIALS if t.method == "fbt"]
        comparison = compare("grid", trials, ORDER, [], CONTROLS)
        write_report(tmp_path, comparison, "x")
        assert comparison.as_json()["pairs"][0]["rows"][0]["splices"] == splices
        return (tmp_path / "report.md").read_text()

    assert "| FBT, C1-3+M4: T1-3+S4 |" in row("FBT, C1-3+M4", {"fusion": ["T1-3+S4"]})
    assert "| two of them: T1-3+S4, S1-3+T4 |" in row("two of them", {"a": ["T1-3+S4"], "b": ["T1-3+S4", "S1-3+T4"]})
    assert "| FBT, S1-3+T4 |" in row("FBT, S1-3+T4", {"fusion": ["S1-3+T4"]})
    assert "| FBT, C1-3+M4 |" in row("FBT, C1-3+M4", None)  # a run of before


def cka(shift: float, **others: object) -> dict:
    """A map of two by three stages."""
    values = [[0.11 + shift, 0.22 + shift, None], [0.33 + shift, 0.44 + shift, -0.01]]
    of = dict(models=["teacher", "student"], rows=["T1", "T2"], columns=["S1", "S2", "S3"], values=values)
    return dict(images=512, maps=dict(teacher_student=of, **others))


def pictures(page: str) -> list[str]:
    return [base64.b64decode(data).decode() for data in re.findall(r"svg\+xml;base64,([^\"]+)", page)]


def test_maps_are_those_of_the_first_seed_that_has_them(tmp_path: Path) -> None:
    fusion = dict(models=["teacher", "fusion"], rows=["T1"], columns=["S1", "S1_T2", "T2"], values=[[0.7, 0.8, 0.9]])
    other = dict(models=["second", "student"], rows=["S1"], columns=["S1"], values=[[0.66]])
    made = [trial("scratch", 0), trial("kd", 2, cka=cka(0.05)), trial("kd", 1, cka=cka(0.0)), trial("kd", 0)]
    made += [trial("fbt", 1, cka=cka(0.5, teacher_fusion=fusion, second_student=other))]
    comparison = compare("grid", made, ORDER, [], CONTROLS)
    write_report(tmp_path, comparison, "x")
    page, data = (tmp_path / "report.html").read_text(), json.loads((tmp_path / "report.json").read_text())
    rows = {row["method"]: row["cka"] for row in data["pairs"][0]["rows"]}
    assert rows["scratch"] is None and rows["kd"] == {"seed": 1, **cka(0.0)}
    *_, to_student, to_fusion, from_second = pictures(page)
    for text in ("kd", "fbt", "0.11", "0.61", "-0.01", "–", "T2", "S3"):
        assert f">{text}</text>" in to_student, text
    assert ">0.16</text>" not in to_student  # the second seed
    assert ">→T2</text>" in to_fusion and ">0.80</text>" in to_fusion and ">fbt, second</text>" in from_second
    for of in ("T (rows) and S (columns)", "T (rows) and F (columns)", "F (rows) and S (columns)"):
        assert page.count(f"{of} on 512 validation images; one run of each method, seed 1.</figcaption>") == 1


def test_many_unfinished_runs_are_counted() -> None:
    missing = [f"{pair}/kd/seed {seed}" for pair, seeds in (("a_b", 6), ("a_c", 3)) for seed in range(seeds)]
    assert "Not finished (9): a_b (6 runs), a_c (3 runs)." in warnings(
        compare("grid", TRIALS, ORDER, missing, CONTROLS)
    )


def test_the_same_trials_make_the_same_page(tmp_path: Path) -> None:
    pages = []
    for name in ("one", "two"):
        write_report(tmp_path / name, compare("grid", TRIALS, ORDER, [], CONTROLS), "x")
        pages.append((tmp_path / name / "report.html").read_bytes())
    assert pages[0] == pages[1]


def test_a_single_run_is_a_report_too(tmp_path: Path) -> None:
    write_report(tmp_path, compare("grid", [trial("kd", 0)], ORDER, [], CONTROLS), "x")
    assert "82" not in (tmp_path / "report.md").read_text().split("How to read")[0]
    write_report(tmp_path, compare("grid", [], ORDER, ["a_b/kd/seed 0"], CONTROLS), "x")
    assert "Not finished" in (tmp_path / "report.html").read_text()


def test_names_are_no_formulas(tmp_path: Path) -> None:
    name = "$x^{$ <b> \\frac"
    trials = [replace(made, method=name) if made.method == "kd" else made for made in TRIALS]
    order = [(pair, name if method == "kd" else method) for pair, method in ORDER]
    controls = {name: name, "scratch": "$\\frac{"}
    assert len(write_report(tmp_path, compare("grid", trials, order, [], controls), "command")) == 3
    assert "<b>" not in (tmp_path / "report.html").read_text()


def test_a_report_of_nothing_has_whole_sentences() -> None:
    text = markdown(compare("grid", [], ORDER, ["a_b/kd/seed 0"], CONTROLS), "fbt compare grid.py")
    assert "in percent on the final split" in text and "Not finished (1)" in text


def test_runs_that_measured_several_things_have_a_table_for_each(tmp_path: Path) -> None:
    """The first measure is compared as always; each other one has its own table, with its own differences."""
    trials = [
        replace(t, measure="knn", also={"probe": {name: value - 50 - t.seed for name, value in t.top1.items()}})
        for t in TRIALS
    ]
    trials = [replace(t, also={**t.also, "top1": {"student": 33.0}}) if t.method == "kd" else t for t in trials]
    comparison = compare("grid", trials, ORDER, [], CONTROLS)
    assert comparison.measure == "k-NN" and [other.measure for other in comparison.others] == ["linear probe", "top-1"]
    probe, top1 = comparison.others
    first, same = comparison.pairs[0].rows, probe.pairs[0].rows
    assert [row.top1.mean for row in same] == [pytest.approx(row.top1.mean - 51) for row in first]
    assert probe.pairs[0].teacher == 39.0 and [row.method for row in top1.pairs[0].rows] == ["kd"]
    text = markdown(comparison, "command")
    before, _, after = text.partition("### The same runs by linear probe, teacher 39.00 %")
    assert "| k-NN % |" in " ".join(before.split()) and "linear probe %" in after and "step time" in before
    assert "step time" not in after.partition("## All pairs")[0]  # that speaks of the runs, not of their figures
    assert "different things" not in text
    html = page(comparison, "command")
    assert "<h3>The same runs by linear probe" in html and comparison.as_json()["others"]["top-1"]["pairs"]
    assert "others" not in compare("grid", TRIALS, ORDER, [], CONTROLS).as_json()
