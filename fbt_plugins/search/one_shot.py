"""One-shot search: one run that trains all splices at once, a ranking of them, and a short finish for the best.

A step of that run draws one splice, so that all of them share the student, the teacher and one junction for each pair
of stages between which they switch (weight sharing as in one-shot architecture search, arXiv 1904.00420). At its end
each splice's fusion model is validated, and the students of the best few train on, each with its own splice alone.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from tabulate import tabulate
from torch import Tensor

from ..config.merging import merge_options
from ..config.options import as_file
from ..console import relative, say
from ..distill.build import FUSION
from ..distill.distiller import Distiller
from ..distill.fusion import BORROWED
from ..engine.check import check_config
from ..engine.hooks.stop import Signals
from ..engine.hooks.topk import evaluate
from ..engine.metrics import measures
from ..engine.plan import Plan
from ..engine.training_run import TrainingRun
from ..errors import ConfigError, FBTError, Told, is_name, is_number, run
from ..files import locked, read_json, write_atomic
from ..jobs.study import SharedStudy, Slot
from ..jobs.workers import die_with_parent
from ..models.weights import save_plain
from .search import NO_TEST, Search, space_of
from .settings import Settings
from .space import Fusions, Space

RANKING = "splices.json"


@dataclass(frozen=True)
class Ranking:
    """What a one-shot run found.

    Attributes:
        top1: of each splice's fusion model, best first: the first metric of validation, in percent.
        starts: files in the run's folder, with the weights of the best.
        seconds: of the run, from its first step to this ranking.
        measure: what ``top1`` is.
    """

    top1: Mapping[str, float]
    starts: Mapping[str, str]
    seconds: float
    measure: str = "top1"

    @classmethod
    def read(cls, folder: Path) -> Ranking:
        """From the folder of a one-shot run.

        Raises:
            FBTError: if it is damaged.
        """
        found, path = read_json(folder / RANKING), folder / RANKING
        try:
            ranking = cls(**found)
            numbers = [*ranking.top1.values(), ranking.seconds]
            if all(map(is_number, numbers)) and all(map(is_name, [*ranking.starts.values(), ranking.measure])):
                return ranking
        except (TypeError, AttributeError):
            pass
        raise FBTError(f"{path}: it is no ranking of splices, or damaged; delete it, and the run is ranked again")


class RankingHook(Hook):
    """Validates each splice at the end of a run, and keeps the weights that the best of them ended with.

    Args:
        fusion: name of the fusion model that has the splices.
        best: of how many splices the weights are kept.
    """

    priority = "LOW"  # before the summary, which loads the epoch that was best for the student

    def __init__(self, fusion: str, best: int) -> None:
        self.fusion, self.best = fusion, best

    def after_train(self, runner: TrainingRun) -> None:
        distiller = runner.distiller
        splices = list(map(str, distiller.fusions[self.fusion].splices))
        names = {splice: f"{self.fusion}@{splice}" for splice in splices}
        loop = runner.val_loop
        figures = evaluate(runner.model, loop.dataloader, loop.evaluator, names.values())
        measure = measures(loop.evaluator.metrics)[0].key
        top1 = {splice: round(figures[f"{name}_{measure}"], 4) for splice, name in names.items()}
        order = sorted(splices, key=lambda splice: -top1[splice])  # of equals, the first of the space
        folder = Path(runner.work_dir)
        starts = {}
        for place, splice in enumerate(order[: self.best]):
            state = state_of(distiller, self.fusion, splices.index(splice))
            starts[splice] = f"start_{place + 1}.pth"
            contents = {"meta": {"splice": splice}, "state_dict": state, "message_hub": {}}
            save_plain(folder / starts[splice], contents)
        ranking = Ranking({s: top1[s] for s in order}, starts, round(runner.seconds, 1), measure)
        write_atomic(folder / RANKING, json.dumps(asdict(ranking), indent=1) + "\n")


def state_of(distiller: Distiller, fusion: str, number: int) -> dict[str, Tensor]:
    """The state of a distiller whose fusion model has one of its splices alone, under that one's own names.

    Args:
        distiller: whose fusion model has several.
        fusion: name of the fusion model.
        number: of the splice, from 0.
    """
    model, own = distiller.fusions[fusion], f"fusions.{fusion}."
    renamed = {f"{own}{here}.": f"{own}{there}." for here, there in model.alone(number).items()}
    width = model.owners[number].num_features
    ends = {name: edge for name, edge in distiller.edges.items() if fusion in (edge.giver, edge.receiver)}
    dropped = tuple(f"edges.{name}.{unused}." for name, edge in ends.items() for unused in edge.unused(fusion, width))
    state = {}
    for key, value in distiller.state_dict().items():
        prefix = next((prefix for prefix in renamed if key.startswith(prefix)), None)
        if prefix is not None:
            state[renamed[prefix] + key.removeprefix(prefix)] = value
        elif not key.startswith((own, *dropped)):
            state[key] = value
    return state


def shared(space: Space) -> Fusions:
    """A space's splices, if one run can train them all.

    Raises:
        ConfigError: if the space is anything but the splices of one strategy, with borrowed tails.
    """
    fusion, *others = space.parameters.values()
    if others or not isinstance(fusion, Fusions) or len(fusion.strategies) != 1:
        raise ConfigError("search.one_shot: its space is model.fusion alone, with one strategy: strategies=[dict(...)]")
    if fusion.base.get("tail", BORROWED) != BORROWED:
        raise ConfigError(f"search.one_shot: {fusion.key}.tail: splices can share a borrowed tail only")
    return fusion


def one_shot_config(config: Config, fusion: Fusions, folder: Path) -> Config:
    """The config of the run that trains all splices.

    Args:
        config: with a ``search``.
        fusion: its splices.
        folder: of the run.
    """
    contents = _with_splice(config, fusion, list(fusion.fitting)) | NO_TEST
    contents["randomness"] = {**contents["randomness"], "seed": Settings.of(config).seed}
    return Config(contents | {"work_dir": str(folder), "resume": "auto", "publish": None})


def finish_config(config: Config, fusion: Fusions, splices: Sequence[str]) -> Config:
    """The config of the best splices' short trainings: each of them once, with a learning rate that only falls.

    Args:
        config: with a ``search``.
        fusion: its splices.
        splices: the best of them.
    """
    settings = Settings.of(config)
    assert settings.one_shot is not None
    epochs, contents = settings.one_shot.epochs, _with_splice(config, fusion, splices[0])
    contents["train_cfg"] = {**contents["train_cfg"], "max_epochs": epochs, "val_interval": 1}
    wrapper = contents["optim_wrapper"]
    optimizer = {**wrapper["optimizer"], "lr": wrapper["optimizer"]["lr"] * settings.one_shot.rate}
    contents["optim_wrapper"] = {**wrapper, "optimizer": optimizer}
    contents["param_scheduler"] = [
        {"type": "CosineAnnealingLR", "T_max": epochs, "end": epochs, "eta_min": 0.0, "convert_to_iter_based": True}
    ]
    contents["search"] = {
        "space": {f"{fusion.key}.splice": list(splices)},
        "sampler": "grid",
        "objectives": list(settings.objectives),
        "seed": settings.seed,
    }
    return Config(contents)


def _with_splice(config: Config, fusion: Fusions, splice: str | Sequence[str]) -> dict[str, Any]:
    """A config's contents with a space's one strategy, and a splice or all."""
    (strategy,) = fusion.strategies.values()
    return merge_options(config.to_dict(), {fusion.key: {**fusion.base, **strategy, "splice": splice}})


def make_ranking(config: Config, fusion: Fusions, folder: Path) -> Ranking:
    """A one-shot run's ranking; the run is made, or goes on, where it is not there yet.

    Args:
        config: with a ``search``.
        fusion: its splices.
        folder: of the run.

    Raises:
        FBTError: if the run fails.
        Told: where it was stopped; it has saved what it has.
    """
    contents = one_shot_config(config, fusion, folder)
    with locked(folder / ".one_shot.lock", f"{relative(folder)} is another process's run", wait=True):
        if not (folder / RANKING).is_file():
            check_config(contents)
            write_atomic(folder / "one_shot.py", as_file(contents, keep=contents))
            say(f"one shot {relative(folder)}: one run for all splices")
            code = _wait([sys.executable, "-m", "fbt_plugins.search.one_shot", str(folder / "one_shot.py")])
            if code:
                raise FBTError(f"the one-shot run in {relative(folder)} has failed (exit code {code})")
        return Ranking.read(folder)


def _wait(command: list[str]) -> int:
    """Runs a command on this terminal; its exit code. Ctrl-C is for this process, which lets the command save."""
    with Signals() as signals:
        process = subprocess.Popen(command, start_new_session=True, preexec_fn=die_with_parent)
        while process.poll() is None:
            if signals.received:
                process.send_signal(signal.SIGTERM)
                process.wait()
                raise Told(signals.received)
            time.sleep(0.2)
    return process.returncode


class Finish(Search):
    """The short trainings of a ranking's best splices, each from the weights that it has in the one-shot run.

    Args:
        study: where they are.
        config: of a whole training, complete, with the one-shot run's ``search``.
        fusion: its splices.
        folder: of the trials' own folders.
        one_shot: folder of the one-shot run.
        workers: processes at the same time.
    """

    def __init__(
        self,
        study: SharedStudy[Slot],
        config: Config,
        fusion: Fusions,
        folder: Path,
        one_shot: Path,
        workers: int = 1,
    ) -> None:
        self.one_shot, self.ranking, self.fusion = one_shot, Ranking.read(one_shot), fusion
        best = list(self.ranking.starts)
        finish = finish_config(config, fusion, best)
        super().__init__(study, finish, space_of(finish), folder, workers)
        self.whole = Config(_with_splice(config, fusion, best[0]))

    def config_of(self, options: Mapping[str, Any], folder: Path | None = None, test: bool = False) -> Config:
        config = super().config_of(options, folder, test)
        if not test:
            (splice,) = options.values()
            config.load_from = str(self.one_shot / self.ranking.starts[splice])
        return config

    def about(self) -> dict[str, Any]:
        """How the best were found, for ``search.json``."""
        seconds = [tried.seconds for tried in self.tried.values() if tried.seconds is not None]
        return {"one_shot": {**asdict(self.ranking), "finish_seconds": round(sum(seconds), 1)}}

    def lines(self) -> list[str]:
        """The same as Markdown."""
        ranked = enumerate(self.ranking.top1.items(), start=1)
        rows = [(place, self.fusion.marked(splice), top1) for place, (splice, top1) in ranked]
        table = tabulate(
            rows, ("place", "splice", f"fusion_{self.ranking.measure}, one shot"), tablefmt="github", floatfmt=".2f"
        )
        return ["All splices, as the one-shot run has trained them:", "", *table.splitlines(), ""]


def main() -> None:
    """A one-shot run's own process."""
    plan = Plan.of(sys.argv[1])
    settings = Settings.of(plan.config)
    assert settings.one_shot is not None
    fusion = next(iter(settings.space)).removeprefix("model.fusion").lstrip(".") or FUSION
    plan.run([RankingHook(fusion, settings.one_shot.best)])


if __name__ == "__main__":
    run(main)
