"""tools/search.py as it is typed: with runs that only pretend to train, and once with real ones."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from forked import Forked, Typed
from mmengine.config import Config
from runs import TINY

pytest.importorskip("optuna")
pytest.importorskip("matplotlib")

from optuna import load_study

from fbt_plugins.config.loading import load_config
from fbt_plugins.jobs import workers
from fbt_plugins.jobs.study import SharedStudy, Slot
from fbt_plugins.search import one_shot
from fbt_plugins.search import results as search_results
from fbt_plugins.search.search import Search, space_of
from fbt_plugins.search.settings import Settings

ROOT = Path(__file__).parents[3]
TOOL = ROOT / "tools" / "search.py"
# Two stages have four splices with one switch.
TWO_STAGES = (
    TINY
    + """
model["student"].update(stages=2, num_blocks=2)
model["teacher"].update(stages=2)
"""
)
SEARCH = (
    TWO_STAGES
    + """
search = dict(
    space={
        "model.fusion": dict(switches=1, strategies=[dict(type="L2GFusion"), dict(type="ConvL2G")]),
        "model.logit_loss.gamma": dict(low=1.0, high=2.0),
    },
    trials=5,
)
"""
)
ONE_SHOT = (
    TWO_STAGES
    + """
search = dict(
    space={"model.fusion": dict(switches=1, strategies=[dict(type="L2GFusion")])}, one_shot=dict(best=2, epochs=1)
)
"""
)
# Stands for python and the trial's module: takes the same arguments and leaves the same files.
PRETENDER = """#!{python} -S
import json, pathlib, re, sys, time
folder = pathlib.Path(sys.argv[3]).parent
with (pathlib.Path({log!r})).open("a") as log: log.write(folder.name + "\\n")
while pathlib.Path({slow!r}).exists() and folder.name != "0000": time.sleep(0.1)
gamma = float(re.search(r"gamma=([0-9.]+)", pathlib.Path(sys.argv[3]).read_text())[1])
(folder / "metrics.jsonl").write_text(json.dumps({{"epoch": 1, "train/images_per_second": 1000 * gamma}}) + "\\n")
(folder / "summary.json").write_text(json.dumps(dict(student_top1=80 + gamma, fusion_top1=70, seconds=5)))
"""


@pytest.fixture
def search(tool: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Runs the tool in a folder of its own; exit code, lines on stdout and on stderr."""
    (tmp_path / "ratio.py").write_text(SEARCH)
    names = {key: str(tmp_path / key) for key in ("log", "slow")}
    (tmp_path / "python").write_text(PRETENDER.format(python=sys.executable, **names))
    (tmp_path / "python").chmod(0o755)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, pretend: bool = True, plots: bool = False) -> tuple[int, list[str], list[str]]:
        with monkeypatch.context() as patch:
            if pretend:
                patch.setattr(sys, "executable", str(tmp_path / "python"))
            else:
                for module in (workers, one_shot):
                    patch.setattr(module, "subprocess", SimpleNamespace(Popen=Forked, STDOUT=subprocess.STDOUT))
            if not plots:  # a second each
                patch.setattr(search_results, "_plots", lambda *_: [])
            done = tool("search", "ratio.py", *arguments)
        return done.code, done.out.splitlines(), done.err.splitlines()

    return run


def results(folder: Path) -> dict:
    return json.loads((folder / "work_dirs" / "search" / "ratio" / "search.json").read_text())


def test_a_search_its_best_config_and_more_trials_where_it_ended(search: Callable, tmp_path: Path) -> None:
    code, out, _ = search("--cfg-options", "search.trials=3")
    assert code == 0 and sum(line.startswith("[") for line in out) == 3
    first = results(tmp_path)["trials"]
    code, out, _ = search("--workers", "2", plots=True)
    assert code == 0 and sum(line.startswith("[") for line in out) == 5
    found = results(tmp_path)
    assert found["trials"][:3] == first
    assert sorted((tmp_path / "log").read_text().split()) == [f"{i:04d}" for i in range(5)]
    assert [trial["number"] for trial in found["trials"]] == list(range(5))
    top1 = {trial["number"]: trial["figures"]["student_top1"] for trial in found["trials"]}
    (best,) = found["best"]
    assert top1[best] == max(top1.values())
    options = found["trials"][best]["options"]
    assert found["trials"][best]["figures"]["step_ms"] == pytest.approx(8 / options["model.logit_loss.gamma"], abs=0.01)
    assert found["trials"][best]["figures"]["extra_parameters"] > 0
    config = load_config(tmp_path / "work_dirs" / "search" / "ratio" / "best.py")
    assert config.model.fusion.to_dict() == options["model.fusion"]
    assert config.model.logit_loss.gamma == options["model.logit_loss.gamma"]
    assert config.test_dataloader is not None and "search" not in config
    text = (tmp_path / "work_dirs" / "search" / "ratio" / "search.md").read_text()
    assert "| best" in text and "history.png" in text
    assert (tmp_path / "work_dirs" / "search" / "ratio" / "history.png").stat().st_size > 5000
    trial = load_config(next((tmp_path / "work_dirs" / "search" / "ratio").glob("trials-*/0000/trial.py")))
    assert trial.test_dataloader is trial.test_cfg is trial.test_evaluator is None  # validation chooses


def test_a_search_that_is_stopped_goes_on_with_the_same_values(
    search: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow").touch()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(tmp_path / "python"))
        process = Typed(TOOL, "ratio.py", "--workers", "2", cwd=tmp_path)
    log = tmp_path / "log"
    for _ in range(600):
        if log.exists() and len(log.read_text().split()) >= 3:  # one done, two begun
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    code, out, _ = process.done()
    assert code == 128 + signal.SIGTERM and "the same command goes on" in out

    def config_of(number: int) -> dict:
        return Config.fromfile(next(tmp_path.glob(f"work_dirs/search/ratio/trials-*/{number:04d}/trial.py"))).to_dict()

    begun = {number: config_of(number) for number in (1, 2)}
    (tmp_path / "slow").unlink()
    assert search("--workers", "2")[0] == 0
    assert {number: config_of(number) for number in begun} == begun
    assert [trial["number"] for trial in results(tmp_path)["trials"]] == list(range(5))
    assert log.read_text().split().count("0000") == 1  # what was done is not run again


@pytest.mark.slow
def test_a_trial_whose_owner_died_keeps_its_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ratio.py").write_text(SEARCH)
    config = load_config(tmp_path / "ratio.py")
    space = space_of(config)
    url = f"sqlite:///{tmp_path / 'study.db'}"

    def make() -> Search:
        study = SharedStudy("ratio", url, Slot, heartbeat=1, grace=1)
        return Search(study, config, space, tmp_path / "trials")

    dead = make()
    claim = dead.study.claim({Slot(0)})
    assert claim is not None
    dead.plan(claim)
    chosen = dead.study.trial(claim).params
    dead.study.report(claim.trial, 1, 42.0)
    alive, again = make(), None
    monkeypatch.setattr("fbt_plugins.jobs.study.time", SimpleNamespace(monotonic=itertools.count().__next__))
    for _ in range(4):  # looks, a second apart, none of which sees a heartbeat
        again = again or alive.study.claim({Slot(0)})
    assert again is not None and again.trial != claim.trial
    alive.plan(again)
    trial = alive.study.trial(again)
    assert trial.params == chosen and trial.intermediate_values == {1: 42.0}


@pytest.mark.slow
def test_the_same_search_proposes_the_same_whoever_asks(tmp_path: Path) -> None:
    (tmp_path / "ratio.py").write_text(SEARCH)
    config = load_config(tmp_path / "ratio.py")
    space = space_of(config)
    chosen = []
    for name in ("one", "two"):
        study = SharedStudy("ratio", f"sqlite:///{tmp_path / name}.db", Slot)
        search = Search(study, config, space, tmp_path / name)
        claims = [study.claim({Slot(i)}) for i in range(2)]
        for claim in claims:
            assert claim is not None
            search.plan(claim)
        chosen.append([study.trial(claim).params for claim in claims if claim])
    assert chosen[0] == chosen[1] and chosen[0][0] != chosen[0][1]


@pytest.mark.slow
def test_a_grid_is_every_combination_once(search: Callable, tmp_path: Path) -> None:
    text = SEARCH.replace("dict(low=1.0, high=2.0)", "[1.0, 1.5]").replace("trials=5", 'sampler="grid"')
    (tmp_path / "ratio.py").write_text(text)
    assert search("--workers", "4")[0] == 0
    tried = [json.dumps(trial["options"], sort_keys=True) for trial in results(tmp_path)["trials"]]
    assert len(tried) == len(set(tried)) == 4 * 2 * 2


@pytest.mark.slow
def test_the_front_of_two_objectives(search: Callable, tmp_path: Path) -> None:
    text = SEARCH.replace("trials=5", 'objectives=["student_top1", "extra_parameters"], sampler="random", trials=8')
    (tmp_path / "ratio.py").write_text(text)
    assert search("--workers", "4", plots=True)[0] == 0
    found = results(tmp_path)
    figures = {t["number"]: (t["figures"]["student_top1"], -t["figures"]["extra_parameters"]) for t in found["trials"]}
    front = {
        n
        for n, (a, b) in figures.items()
        if not any(c >= a and d >= b and (c, d) != (a, b) for c, d in figures.values())
    }
    assert set(found["best"]) == front
    folder = tmp_path / "work_dirs" / "search" / "ratio"
    assert (folder / "front.png").is_file() and len(list(folder.glob("front_*.py"))) == len(front) - 1


def test_values_that_were_tried_are_not_trained_again(search: Callable, tmp_path: Path) -> None:
    text = SEARCH.replace("dict(low=1.0, high=2.0)", "[1.0]")
    text = text.replace(', dict(type="ConvL2G")', "").replace("trials=5", 'sampler="random", trials=6')
    (tmp_path / "ratio.py").write_text(text)
    assert search()[0] == 0
    assert len(results(tmp_path)["trials"]) == 6 and len((tmp_path / "log").read_text().split()) <= 4


@pytest.mark.parametrize(
    ("text", "change", "line"),
    [
        (SEARCH, ("trials=5", "trials=5, sampler='tpee'"), "search.sampler: 'tpee'; did you mean 'tpe'?"),
        (SEARCH, ("trials=5", "trials=5, objectives=['top1']"), "search.objectives: 'top1'"),
        (SEARCH, ("trials=5", "trials=5, pruner='asha', objectives=['student_top1', 'step_ms']"), "search.pruner: "),
        (SEARCH, ("trials=5", "trails=5"), "search: unknown argument 'trails'; did you mean 'trials'?"),
        (SEARCH, ("search = ", "_search = "), "it has no search=dict("),
        (ONE_SHOT, ("best=2", "bets=2"), "search.one_shot: a dict of best, epochs, rate"),
        (ONE_SHOT, ("best=2", "best=0"), "search.one_shot: best=0, epochs=1: whole numbers from 1"),
        (ONE_SHOT, ("one_shot=", "trials=4, one_shot="), "search.trials: search.one_shot trains all splices in one"),
        (ONE_SHOT, ('[dict(type="L2GFusion")]', '"all"'), "its space is model.fusion alone, with one strategy"),
        (
            ONE_SHOT,
            ("search = ", 'model["fusion"] = dict(tail="copied")\nsearch = '),
            "splices can share a borrowed tail only",
        ),
    ],
)
def test_what_is_wrong_is_said(search: Callable, tmp_path: Path, text: str, change: tuple[str, str], line: str) -> None:
    (tmp_path / "ratio.py").write_text(text.replace(*change))
    code, out, err = search()
    assert code == 2 and not out and any(line in problem for problem in err), err


def test_a_search_goes_by_what_the_config_measures(search: Callable, tmp_path: Path) -> None:
    """By the student's first metric, where the config does not say more."""
    (tmp_path / "ratio.py").write_text(
        SEARCH.replace("trials=5", "trials=2").replace("search = ", 'val_evaluator = dict(type="KNN")\nsearch = ')
    )
    python = (tmp_path / "python").read_text()
    (tmp_path / "python").write_text(
        python.replace(
            "student_top1=80 + gamma, fusion_top1=70", 'student_knn=80 + gamma, fusion_knn=70, measure="knn"'
        )
    )
    assert search()[0] == 0
    found = results(tmp_path)
    assert found["objectives"] == {"student_knn": "maximize"}
    figures = [trial["figures"] for trial in found["trials"]]
    assert all(81 < one["student_knn"] < 82 and one["fusion_knn"] == 70 for one in figures)
    text = (tmp_path / "ratio.py").read_text().replace("trials=2", 'trials=2, objectives=["student_top1"]')
    (tmp_path / "ratio.py").write_text(text)
    code, _, err = search()
    assert code == 2 and err[0].endswith("search.objectives: 'student_top1'; did you mean 'student_knn'?"), err


def test_what_is_chosen_from_can_be_listed(search: Callable) -> None:
    code, out, _ = search("--list")
    assert code == 0 and out[0] == "model.fusion: 4 splices, 8 with their projectors"
    assert "  S1+T2: L2GFusion, ConvL2G" in out and out[-1] == "model.logit_loss.gamma: 1.0 to 2.0"


@pytest.mark.slow
def test_real_trials_of_which_the_worse_is_pruned(search: Callable, tmp_path: Path) -> None:
    (tmp_path / "ratio.py").write_text(SEARCH.replace("trials=5", 'trials=2, pruner="median"'))
    code, _, err = search("--cfg-options", "search.trials=1", pretend=False)
    assert code == 0, err
    (first,) = results(tmp_path)["trials"]
    assert set(first["figures"]) == {"student_top1", "fusion_top1", "step_ms", "extra_parameters"}
    url = f"sqlite:///{tmp_path / 'work_dirs' / 'search' / 'ratio' / 'study.db'}"
    study = load_study(study_name=None, storage=url)
    (perfect,) = study.trials
    perfect.intermediate_values = dict.fromkeys((1, 2, 3), 100.0)
    for _ in range(5):  # how many the median pruner waits for
        study.add_trial(perfect)

    code, _, err = search(pretend=False)
    assert code == 0, err
    trials = results(tmp_path)["trials"]
    assert [t["state"] for t in trials] == ["complete", "pruned"]
    assert trials[1]["epoch"] == 1 and not (Path(trials[1]["folder"]) / "summary.json").exists()


@pytest.mark.slow
def test_edges_may_be_left_out_and_with_them_the_fusion_model(search: Callable, tmp_path: Path) -> None:
    """Without edges to the fusion model there is none, and every splice is the same run: it is made once."""
    edges = ["teacher_to_student", "teacher_to_fusion", "fusion_to_student"]
    text = SEARCH.replace('"model.logit_loss.gamma": dict(low=1.0, high=2.0)', f'"model.edges": [{edges}, {edges[:1]}]')
    text = text.replace(', dict(type="ConvL2G")', "").replace("trials=5", 'sampler="grid"')
    (tmp_path / "ratio.py").write_text(text)
    script = (tmp_path / "python").read_text().replace("gamma = float", "gamma = 1 #")
    (tmp_path / "python").write_text(script)
    assert search()[0] == 0
    trials = results(tmp_path)["trials"]
    assert len(trials) == 8 and len({t["folder"] for t in trials if len(t["options"]["model.edges"]) == 3}) == 4
    without = [t for t in trials if len(t["options"]["model.edges"]) == 1]
    assert len(without) == 4 and len({t["folder"] for t in without}) == 1
    assert all(t["figures"]["extra_parameters"] == 0 for t in without)
    assert load_config(Path(without[0]["folder"]) / "trial.py").model.fusion is None


def test_one_shot_search(search: Callable, tmp_path: Path) -> None:
    """One run for all splices, then the best two train on with theirs alone, from the weights of that run."""
    (tmp_path / "ratio.py").write_text(ONE_SHOT)
    code, _, err = search("--workers", "2", pretend=False)
    assert code == 0, err
    found = results(tmp_path)
    top1, starts = found["one_shot"]["top1"], found["one_shot"]["starts"]
    assert len(top1) == 4 and list(top1.values()) == sorted(top1.values(), reverse=True)
    assert list(starts) == list(top1)[:2] == [t["options"]["model.fusion.splice"] for t in found["trials"]]
    assert found["one_shot"]["seconds"] > 0 and found["one_shot"]["finish_seconds"] > 0
    out = tmp_path / "work_dirs" / "search" / "ratio"
    (folder,) = out.glob("one_shot-*")
    assert load_config(folder / "one_shot.py").test_dataloader is None  # validation ranks
    finish = load_config(next(out.glob("trials-*/0000/trial.py")))
    assert Path(finish.load_from) == folder.relative_to(tmp_path) / "start_1.pth"
    assert finish.train_cfg.max_epochs == 1 and finish.optim_wrapper.optimizer.lr == pytest.approx(1e-3)
    assert f"{next(iter(top1))} " in (out / "search.md").read_text()
    (best,) = found["best"]
    whole = load_config(out / "best.py")
    assert whole.model.fusion.to_dict() == {"type": "L2GFusion", "splice": list(starts)[best]}
    assert whole.train_cfg.max_epochs == 3 and whole.test_dataloader is not None and "load_from" not in whole
    # Again: nothing is run, and the same comes out.
    assert search(pretend=False)[0] == 0
    assert results(tmp_path)["trials"] == found["trials"]


@pytest.mark.slow
def test_a_one_shot_search_that_is_stopped_ranks_as_one_that_is_not(search: Callable, tmp_path: Path) -> None:
    (tmp_path / "ratio.py").write_text(ONE_SHOT.replace("search = ", 'train_cfg["max_epochs"] = 12\nsearch = '))
    process = subprocess.Popen([sys.executable, str(TOOL), "ratio.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    out = tmp_path / "work_dirs" / "search" / "ratio"
    for _ in range(1200):
        if list(out.glob("one_shot-*/epoch_2.pth")):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "the one-shot run has saved what it has" in text
    assert not list(out.glob("one_shot-*/splices.json"))
    assert search(pretend=False)[0] == 0
    stopped = results(tmp_path)["one_shot"]["top1"]
    out.rename(tmp_path / "first")
    assert search(pretend=False)[0] == 0
    assert results(tmp_path)["one_shot"]["top1"] == stopped


def test_settings_of_a_config_without_validation(tmp_path: Path) -> None:
    (tmp_path / "ratio.py").write_text(SEARCH)
    config = load_config(tmp_path / "ratio.py").to_dict()
    with pytest.raises(Exception, match="val_dataloader is missing: splices are chosen by validation"):
        Settings.of({**config, "val_dataloader": None})
