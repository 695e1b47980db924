"""The end of a run: the best student, tested once, as a table, summary.json and student.safetensors."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import barrier, is_main_process
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop

from ...analysis.cka import StageSimilarity
from ...config.hashing import training_hash
from ...config.options import WithoutTeacher
from ...console import console, count, relative, say
from ...distill.distiller import Distiller
from ...errors import one_line
from ...files import UNFINISHED, write_atomic
from ..checkpoints.files import read_checkpoint
from ..finished.student import about_student, save_student
from ..metrics import measures
from ..provenance import git_state, versions
from ..training_run import TrainingRun
from .checkpoints import AtomicCheckpointHook
from .publish_teacher import publish
from .run_tables import result_table
from .topk import evaluate
from .unreadable_images import UnreadableImagesHook


@HOOKS.register_module()
class SummaryHook(Hook):
    """Loads the checkpoint that validation chose, tests it once, and writes what a run leaves behind.

    Args:
        timing_batch: images per forward pass in the timing of each model.
        timing_runs: forward passes, of which the median counts.
        cka: arguments of :class:`StageSimilarity`, None for no such maps; the runner passes on the config's ``cka``.
    """

    priority = "LOWEST"

    def __init__(self, timing_batch: int = 64, timing_runs: int = 5, cka: Mapping[str, Any] | None = None) -> None:
        self.timing_batch, self.timing_runs = timing_batch, timing_runs
        self.similarity = None if cka is None else StageSimilarity(**cka)

    def after_train(self, runner: TrainingRun) -> None:
        seconds = runner.seconds
        distiller = runner.distiller
        barrier()  # the first process may still be writing the best checkpoint, which all of them read
        info = runner.message_hub.runtime_info
        best = info.get("best_ckpt")
        at = {"epoch": runner.epoch, "iter": runner.iter}
        if best is not None:
            checkpoint = read_checkpoint(best)  # an error where it is gone: the last weights are not the best
            distiller.load_state_dict(checkpoint["state_dict"])
            at = checkpoint["meta"]
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        when = f"epoch {at['epoch']}" if by_epoch else f"iteration {at['iter']:,}"
        when = f"best {when} by validation" if best is not None else f"last {when}"
        path = Path(runner.work_dir) / "student.safetensors"
        loader, evaluator, split = _final_data(runner)
        classes = list((loader or runner.train_dataloader).dataset.classes)
        if loader is None:  # without data to test on, the student is saved all the same
            if is_main_process():
                about = about_student(runner.cfg.model.get("student"), None, distiller.student) | {"classes": classes}
                save_student(distiller.student, path, about)
                say(f"student  {relative(path)}")
            return
        measured = measures(evaluator.metrics)
        first = f"student_{measured[0].key}"
        known = {
            "measure": measured[0].key,
            "also_measured": [other.key for other in measured[1:]],
            "split": split,
            "best_epoch": at["epoch"] if by_epoch else None,
            "best_iteration": at["iter"],
            f"best_validation_{_chosen_by(runner) or first}": info.get("best_score"),
            "seconds": round(seconds, 1),
            "config": runner.cfg.filename,
            "command": runner.cfg.get("command"),
            "splices": distiller.splices,
            "cell": runner.cfg.get("cell"),
            "reference": runner.cfg.get("reference"),
            "without_teacher": None if (alone := _alone(runner)) is None else asdict(alone),
            "seed": runner.seed,
            "device": str(runner.device),
            "world_size": runner.world_size,
            "versions": versions(),
            "git": git_state(),
        }
        about = {
            "classes": classes,
            "image_size": list(distiller.image_size),
            **about_student(runner.cfg.model.get("student"), loader.dataset, distiller.student),
        }
        with _kept(distiller, path, about, known):
            with console.status(f"testing the student ({when})"):
                metrics = evaluate(runner.model, loader, evaluator, distiller.names)
            if (unread := runner.hook(UnreadableImagesHook)) is not None:
                unread.look(loader.dataset, split)
                known |= {"unreadable_images": unread.counts} if unread.counts else {}
            if not is_main_process():
                return
            images = next(iter(loader))
            rows = [
                {
                    "role": name,
                    "name": distiller.models[name].name
                    if name in distiller.models
                    else str(distiller.fusions[name].splices[0]),
                    **{measure.key: metrics.get(f"{name}_{measure.key}") for measure in measured},
                    "parameters": _parameters(distiller, name),
                    "ms": self._milliseconds(distiller, name, images),
                }
                for name in distiller.names
            ]
            similarity = self._cka(runner, distiller)
        save_student(distiller.student, path, {**about, measured[0].key: metrics[first], "split": split})
        write_summary(path, {**metrics, **known, "models": rows, "cka": similarity})
        result_table(rows, measured, f"{split}, {len(loader.dataset):,} images, {when}", alone)
        if alone is not None:
            say(f"alone    {alone.top1:.2f} ± {alone.std:.2f} %, {alone.seeds} seeds: {alone.command}")
        if (reference := runner.cfg.get("reference")) and (ours := metrics.get("student_top1")) is not None:
            theirs = reference["top1"]
            say(f"published {theirs:.2f} % ({reference['source']}); here {ours:.2f} % ({ours - theirs:+.2f})")
        say(f"student  {relative(path)}")
        say(f"summary  {relative(path.with_name('summary.json'))}")
        if target := runner.cfg.get("publish"):
            publish(path.parent, Path(target))
            say(f"teacher  {target}, {metrics[first]:.2f} % {measured[0].title} ({split})")

    def _cka(self, runner: TrainingRun, distiller: Distiller) -> dict[str, Any] | None:
        """Similarities of stages on validation images; the test split is used for accuracies only."""
        if self.similarity is None or runner.val_loop is None:
            return None
        with console.status("comparing the stages"):
            return self.similarity.maps(distiller, runner.val_dataloader.dataset)

    def _milliseconds(self, distiller: Distiller, name: str, batch: dict[str, Any]) -> float:
        """Median time per image of a model's forward pass from the image, alone."""
        part = {**batch, "inputs": batch["inputs"][: self.timing_batch], "labels": batch["labels"][: self.timing_batch]}
        data = distiller.data_preprocessor(part, False)
        distiller.eval()
        times = []
        for _ in range(self.timing_runs + 1):
            _wait(data["inputs"].device)
            start = time.perf_counter()
            distiller.predict(data["inputs"], [name])
            _wait(data["inputs"].device)
            times.append(time.perf_counter() - start)
        return 1000 * sorted(times[1:])[len(times[1:]) // 2] / len(data["inputs"])


def _alone(runner: TrainingRun) -> WithoutTeacher | None:
    """What the student reaches without a teacher, where the config says so for the training that this run had."""
    shipped = runner.cfg.get("without_teacher")
    if shipped is None or shipped["training"] != training_hash(runner.cfg.to_dict()):
        return None
    return WithoutTeacher(**shipped)


def _chosen_by(runner: TrainingRun) -> str | None:
    """The metric of validation whose best epoch counts, where there is one."""
    hook = runner.hook(AtomicCheckpointHook)
    return None if hook is None or runner.val_loop is None else hook.save_best


def write_summary(student: Path, summary: Mapping[str, Any]) -> None:
    """Writes summary.json beside a student's file."""
    write_atomic(student.with_name("summary.json"), json.dumps(summary, indent=2) + "\n")


@contextmanager
def _kept(distiller: Distiller, path: Path, about: Mapping[str, Any], known: Mapping[str, Any]) -> Iterator[None]:
    """Whatever fails within it, after a whole training: the best student and what is known are written first."""
    try:
        yield
    except Exception as error:
        if is_main_process():
            save_student(distiller.student, path, about)
            write_summary(path, {**known, UNFINISHED: f"testing failed: {one_line(error)}"})
            say(f"student  {relative(path)} (the best, not tested)")
        raise


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _parameters(distiller: Distiller, name: str) -> int:
    """Parameters of a model; of a fusion model those of its junctions, and of the stages and the head that it runs."""
    if name in distiller.models:
        return count(distiller.models[name])
    return sum(map(count, distiller.fusions[name].parts()))


def _final_data(runner: TrainingRun) -> tuple[Any, Evaluator, str]:
    """The test split where the config has one, else validation; None where it has neither."""
    if runner.tests:
        loop = runner.test_loop
        return loop.dataloader, loop.evaluator, "test"
    if runner.val_loop is not None:
        return runner.val_loop.dataloader, runner.val_loop.evaluator, "validation"
    return None, Evaluator([]), "none"
