"""Where the time of a training step goes, compared with a bare loop in plain PyTorch of the same arithmetic."""

from __future__ import annotations

import math
import random
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import EpochBasedTrainLoop
from rich.progress import track
from torch import Tensor

from ..console import console, describe_device
from ..distill.distiller import Distiller
from ..distill.edge import STUDENT, TEACHER
from ..distill.edge_schedule import Schedule
from ..distill.needs import start_of
from ..errors import ConfigError
from ..models.knowledge import Batch, Knowledge
from ..models.staged import StagedModel
from .mmengine_patches import set_position
from .provenance import versions
from .runner import DistillRunner

PARTS = ("images", "teacher", "student", "fusion", "losses", "backward", "optimizer")
"""Of the bare loop's step, in their order."""

_WARM_UP = 3


class BareLoop:
    """The same arithmetic as a run's, as one would write it for this one pair of models: no hooks, no checks.

    It has an optimizer of its own over the same parameters. It does not compile.

    Args:
        runner: ready to train.
    """

    def __init__(self, runner: DistillRunner) -> None:
        wrapper = runner.optim_wrapper
        self.distiller: Distiller = runner.model
        self.device = runner.device
        self.dtype = wrapper.dtype
        self.clip, self.limits = wrapper.clip_func if wrapper.clip_grad_kwargs else None, wrapper.clip_grad_kwargs
        groups = [dict(group) for group in wrapper.optimizer.param_groups]
        self.optimizer = type(wrapper.optimizer)(groups)
        self.parameters = [p for group in groups for p in group["params"]]
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR
        self.schedules = [cosine(self.optimizer, 10**9) for _ in runner.param_schedulers or ()]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)

    def step(self, batch: dict[str, Tensor], mark: Callable[[str], None] = lambda part: None) -> None:
        """One update.

        Args:
            batch: of the loader; with what a teacher cache added to it, if there is one.
            mark: is told the name of each part of ``PARTS`` when that is done.
        """
        self.scaler.scale(self.forward(batch, mark)).backward()
        mark("backward")
        if self.clip is not None:
            self.scaler.unscale_(self.optimizer)
            self.clip(self.parameters, **self.limits)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        for schedule in self.schedules:
            schedule.step()
        mark("optimizer")

    def forward(self, batch: dict[str, Tensor], mark: Callable[[str], None]) -> Tensor:
        """The sum of all losses."""
        distiller, student, teacher = self.distiller, self.distiller.student, self.distiller.teacher
        images, labels = batch["inputs"].to(self.device).float(), batch["labels"].to(self.device)
        if batch["inputs"].dtype == torch.uint8:
            images = images / 255
        if (mixing := distiller.data_preprocessor.mixing) is not None:
            images, labels = mixing(images, labels, 0)
        mark("images")
        known: dict[str, Knowledge] = {}
        starts: dict[str, dict[int, Tensor]] = {STUDENT: {}, TEACHER: {}}
        splices = distiller.step.splices
        needs = distiller.needs(distiller.in_losses(distiller.step.on), splices)
        with self.precision():
            if "teacher_features" in batch:
                parts = [batch.get(f"teacher_{part}") for part in ("features", "logits")]
                features, logits = (None if part is None else part.to(self.device).float() for part in parts)
                stored: Any = batch.get("teacher_stages") or {}
                starts[TEACHER] = {number: output.to(self.device).float() for number, output in stored.items()}
                known[TEACHER] = Knowledge(features, logits, starts[TEACHER])  # type: ignore[arg-type]
            elif teacher is not None:
                with torch.no_grad():
                    x = distiller.prepare(images, TEACHER)
                    known[TEACHER] = self._run(teacher, x, needs[TEACHER], starts[TEACHER])
            mark("teacher")
            x = distiller.prepare(images, STUDENT)
            known[STUDENT] = self._run(student, x, needs[STUDENT], starts[STUDENT])
            mark("student")
            for (name, fusion), number in zip(distiller.fusions.items(), splices, strict=True):
                role, last = start_of(fusion, number)
                known[name] = fusion(starts[role][last], number)
            mark("fusion")
            facts = Batch(labels, batch["index"].to(self.device))
            losses = [value for edge in distiller.edges.values() for value in edge(known, facts).values()]
            loss = torch.stack([value.float() for value in losses]).sum()
        mark("losses")
        return loss

    def _run(self, model: StagedModel, x: Tensor, needs: set[int], outputs: dict[int, Tensor]) -> Knowledge:
        for number, stage in enumerate(model.stages, 1):
            x = stage(x)
            if number in needs:
                outputs[number] = x
        known = model.head(x)
        return Knowledge(known.features, known.logits, outputs, known.extra)

    def precision(self) -> Any:
        """The context of a forward pass."""
        if self.dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)


def benchmark(config: Config, rounds: int = 20, after: int = 0) -> dict[str, Any]:
    """Times a config's training step and its parts, all kinds of step in turn, in one process, with all losses on.

    Args:
        config: of a run; its folder must be one that may be written to.
        rounds: how often each kind of step is timed.
        after: iterations for which all hooks are run before that, without training: time must not grow with them.

    Returns:
        ``milliseconds`` of each part (median, and quartiles as low and high), and what follows from them.

    Raises:
        ConfigError: for several processes, or accumulated gradients.
    """
    if config.get("launcher", "none") != "none":
        raise ConfigError("a benchmark is of one process; leave out --launcher")
    if config.optim_wrapper.get("accumulative_counts", 1) != 1:
        raise ConfigError("optim_wrapper.accumulative_counts: a benchmark is of steps that update; set it to 1")
    for split in ("val", "test"):
        for part in ("dataloader", "cfg", "evaluator"):
            config[f"{split}_{part}"] = None
    # As many schedules as the run has, of any length: a benchmark may make more steps than the run.
    schedules = config.get("param_scheduler") or []
    endless = dict(type="CosineAnnealingLR", T_max=10**9, end=10**9, by_epoch=False)
    config.param_scheduler = [endless] * (len(schedules) if isinstance(schedules, list) else 1)
    config.default_hooks.teacher_check = None
    config.default_hooks.checkpoint.interval = 10**9
    config.visualizer = dict(type="Visualizer", vis_backends=[])
    runner = DistillRunner.from_cfg(config)
    loop: Any = runner.train_loop
    found: dict[str, Any] = {}
    loop.run = lambda: found.update(_measure(runner, loop, rounds, after))
    runner.train()
    return found


def _measure(runner: DistillRunner, loop: Any, rounds: int, after: int) -> dict[str, Any]:
    distiller: Distiller = runner.model
    for edge in distiller.edges.values():
        edge.schedule = Schedule()
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    runner.optim_wrapper.period = len(loop.dataloader)
    for group in runner.optim_wrapper.param_groups:
        group["lr"] = 0.0  # so that training on one batch again and again cannot diverge
    runner.call_hook("before_train")
    runner.call_hook("before_train_epoch")
    distiller.train()
    batches = _endless(loop)
    batch = next(batches)
    bare = BareLoop(runner)
    parts: dict[str, list[float]] = {part: [] for part in PARTS}

    def engine(data: Any = batch) -> None:
        loop.run_iter(0, data) if by_epoch else loop.run_iter(data)

    def marked() -> None:
        clock = [_now(runner.device)]

        def mark(part: str) -> None:
            clock.append(_now(runner.device))
            parts[part].append(clock[-1] - clock[-2])

        bare.step(batch, mark)

    kinds: dict[str, Callable[[], object]] = {
        "whole": lambda: engine(next(batches)),
        "data": lambda: next(batches),
        "engine": engine,
        "bare": lambda: bare.step(batch),
        "marked": marked,
        **_fusion_kinds(distiller, bare, batch),
    }
    if runner.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(runner.device)
    for _ in range(_WARM_UP):
        engine()
    memory = _peak_memory(runner.device)
    outputs = distiller.train_step(batch, runner.optim_wrapper)
    for _ in track(range(after), "hooks", console=console, disable=not (after and console.is_terminal)):
        runner.call_hook("before_train_iter", batch_idx=0, data_batch=batch)
        runner.call_hook("after_train_iter", batch_idx=0, data_batch=batch, outputs=outputs)
        set_position(loop, loop.epoch, loop.iter + 1)
    times = _interleaved(kinds, rounds, runner.device, parts)
    runner.check_losses(loop.iter)
    return _report(runner, times, parts, len(batch["inputs"]), memory, rounds, after)


def _fusion_kinds(distiller: Distiller, bare: BareLoop, batch: dict[str, Tensor]) -> dict[str, Callable[[], object]]:
    """Forward and backward of the models without fusion models, with them, and with them apart; no losses.

    Apart, a fusion model starts from activations that are no part of any other graph. All three begin with the same
    forward of the student, which leaves the caches as they are in a step.
    """
    if not distiller.fusions:
        return {}
    images = distiller.data_preprocessor(batch, False)["inputs"]
    starts: dict[tuple[str, int], Tensor] = {}  # of all splices, because each step of the engine draws another one
    with torch.no_grad(), bare.precision():
        for fusion in distiller.fusions.values():
            for role, last in (start_of(fusion, number) for number in range(len(fusion.splices))):
                inputs = distiller.prepare(images, role)
                starts[role, last] = distiller.models[role].stage_outputs(inputs, (last,))[last]
    models = {STUDENT, *(role for role, _ in starts)}

    def descend(known: dict[str, Knowledge]) -> None:
        trained = [k for name, k in known.items() if name != TEACHER]
        torch.stack([k.features.float().sum() + k.output.float().sum() for k in trained]).sum().backward()

    def own() -> None:
        with bare.precision():
            known = {}
            for (name, fusion), number in zip(distiller.fusions.items(), distiller.step.splices, strict=True):
                role, last = start_of(fusion, number)
                known[name] = fusion(starts[role, last].detach().requires_grad_(role == STUDENT), number)
        descend(known)

    def run(wanted: set[str]) -> None:
        with bare.precision():
            known = distiller.know(images, wanted, splices=distiller.step.splices)
        descend(known)

    def apart() -> None:
        run(models)
        own()

    return {
        "with_fusion": lambda: run({*models, *distiller.fusions}),
        "without_fusion": lambda: run(models),
        "fusion_apart": apart,
    }


def _endless(loop: Any) -> Iterator[dict[str, Tensor]]:
    epoch = 0
    while True:
        yield from loop.batches(epoch, 0)
        epoch += 1


def _interleaved(
    kinds: dict[str, Callable[[], object]], rounds: int, device: torch.device, parts: dict[str, list[float]]
) -> dict[str, list[float]]:
    """Seconds of one step of each kind, one value a round; the kinds take turns, each round in another order.

    One step at a time, so that the two steps of a pair lie milliseconds apart and what slows the machine slows both.
    """
    for kind in kinds.values():
        for _ in range(_WARM_UP):
            kind()
    for values in parts.values():
        values.clear()
    times: dict[str, list[float]] = {name: [] for name in kinds}
    names, order = list(kinds), random.Random(0)
    for _ in track(range(rounds), "timing", console=console, disable=not console.is_terminal):
        order.shuffle(names)
        for name in names:
            kinds[name]()  # untimed, so that the timed one finds the caches as its own kind leaves them
            start = _now(device)
            kinds[name]()
            times[name].append(_now(device) - start)
    return times


def _report(
    runner: DistillRunner,
    times: dict[str, list[float]],
    parts: dict[str, list[float]],
    batch_size: int,
    memory: float,
    rounds: int,
    after: int,
) -> dict[str, Any]:
    overhead = [a - b for a, b in zip(times["engine"], times["bare"], strict=True)]
    rows = {"data": times["data"]} | {part: values for part, values in parts.items() if sum(values)}
    rows |= {"engine": overhead, "bare step": times["bare"], "engine step": times["engine"], "whole": times["whole"]}
    step, whole = statistics.median(times["engine"]), statistics.median(times["whole"])
    result = {
        "config": runner.cfg.filename,
        "device": describe_device(runner.device),
        "versions": versions(),
        "precision": str(runner.optim_wrapper.dtype).removeprefix("torch."),
        "batch_size": batch_size,
        "rounds": rounds,
        "after_iterations": after,
        "milliseconds": {name: _spread(values) for name, values in rows.items()},
        "engine_microseconds": 1e6 * statistics.median(overhead),
        "engine_microseconds_95": [1e6 * value for value in _median_interval(overhead)],
        "engine_percent": 100 * statistics.median(overhead) / step,
        "images_per_second": batch_size / whole,
        "peak_memory_mb": memory,
    }
    if "with_fusion" in times:
        cost, own = (
            [a - b for a, b in zip(times[kind], times["without_fusion"], strict=True)]
            for kind in ("with_fusion", "fusion_apart")
        )
        result["fusion"] = {
            "own_milliseconds": _spread(own),
            "cost_milliseconds": _spread(cost),
            "ratio": statistics.median(cost) / statistics.median(own),
        }
    return result


def _spread(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4)
    return {"median": 1e3 * median, "low": 1e3 * low, "high": 1e3 * high}


def _median_interval(values: list[float]) -> tuple[float, float]:
    """A 95 % interval of the median, from the ranks of the values (binomial; as good as all of them where few)."""
    ordered, half = sorted(values), 0.98 * len(values) ** 0.5
    middle = (len(values) - 1) / 2
    return ordered[max(0, int(middle - half))], ordered[min(len(values) - 1, math.ceil(middle + half))]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _peak_memory(device: torch.device) -> float:
    """MB: on a GPU what torch has allocated for training, else the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
