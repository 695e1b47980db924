"""The runner: mmengine's for a distiller, without what breaks on today's torch, on CPUs and at a second start."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import get_dist_info, is_distributed
from mmengine.hooks import Hook
from mmengine.registry import MODELS, VISUALIZERS
from mmengine.runner import EpochBasedTrainLoop
from torch import nn
from torch.utils.data import DataLoader

from ..config.merging import merge
from ..config.options import DEFAULT_HOOKS, OPTIONS
from ..console import say
from ..data import InMemoryLoader
from ..data.mixing import ImagePreprocessor
from ..distill.build import TEACHER
from ..distill.distiller import Distiller
from ..errors import ConfigError, FBTError, one_line
from . import loops, optim  # noqa: F401 - they register themselves, as all of .hooks does
from .checkpoints.resuming import begin, load, take_up
from .device import keep_freed_memory, resolve_device
from .faults import in_one_line
from .hooks.checkpoints import AtomicCheckpointHook
from .hooks.loss_guard import LossGuard
from .hooks.progress import ProgressHook
from .hooks.stop import StopHook
from .hooks.teacher_cache import TeacherCacheHook
from .hooks.topk import evaluate
from .hooks.unreadable_images import UnreadableImagesHook
from .loaders import SPLITS, build_loader, data_info, label_problems, loader_problems, mixing_for, open_banks
from .loops import with_batches
from .metrics import unmeasurable
from .mmengine_patches import PatchedRunner
from .optim.schedules import as_list, in_iterations, scaled
from .processes import find_processes, join_processes, one_run, wrap
from .training_mode import last_batch_problems
from .training_run import H, unwrapped


class DistillRunner(PatchedRunner):
    """mmengine's Runner for a :class:`Distiller`.

    A config says what mmengine's Runner takes, and what :data:`fbt_plugins.config.options.OPTIONS` lists.
    """

    model: Any
    resuming: bool = False
    """Whether it goes on from a checkpoint; known from :meth:`load_or_resume` on."""
    rate_scale: float = 1.0
    """What ``auto_scale_lr`` has multiplied the learning rate by."""
    _loaded = False
    _began, _seconds_before = 0.0, 0.0

    @classmethod
    def from_cfg(cls, cfg: Config) -> DistillRunner:
        """Builds a run.

        Raises:
            FBTError: for whatever in the config or the machine stops it; ``FBT_DEBUG=1`` shows where.
        """
        try:
            # Formatting takes a third of a second: config.py is formatted, log, TensorBoard and checkpoints are not.
            plain = Config(cfg.to_dict(), cfg.text, cfg.filename, cfg.env_variables, format_python_code=False)
            runner: DistillRunner = super().from_cfg(plain)  # type: ignore[assignment]
        except FBTError:
            raise
        except Exception as error:  # mmengine, torch and plugins refuse things with any exception
            source = f"config {cfg.filename}: " if cfg.filename else ""
            raise FBTError(f"{source}the run cannot be built: {one_line(error)}") from error
        return runner

    def setup_env(self, env_cfg: dict[str, Any]) -> None:
        find_processes(self.launcher)
        self.device = resolve_device(self.cfg.get("device"), self.distributed)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        else:
            keep_freed_memory()
        if self.distributed and not is_distributed():
            join_processes(self.device, **env_cfg.get("dist_cfg", {}))
        super().setup_env(env_cfg)

    def build_logger(self, log_level: int | str = "INFO", log_file: str | None = None, **kwargs: Any) -> Any:
        """mmengine's log goes to its file; the terminal shows warnings and what our own hooks print."""
        logger = super().build_logger(log_level, log_file, **kwargs)
        for handler in logger.handlers:
            if type(handler) is logging.StreamHandler:
                handler.setLevel(logging.WARNING)
                handler.addFilter(_actionable)
        return logger

    def build_visualizer(self, visualizer: Any = None) -> Any:
        """mmengine's Visualizer, with TensorBoard where that is installed."""
        if visualizer is None:
            backends = [{"type": "TensorboardVisBackend"}] if _has("tensorboard") else []
            visualizer = {
                "type": "Visualizer",
                "name": self.experiment_name,
                "vis_backends": backends,
                "save_dir": self.log_dir,
            }
            return VISUALIZERS.build(visualizer)
        return super().build_visualizer(visualizer)

    def build_model(self, model: Any) -> nn.Module:
        """Builds the distiller, after the data of all splits: it must fit the training data's image size and classes.

        Raises:
            ConfigError: with what is wrong with the data.
        """
        if isinstance(model, nn.Module):
            return model
        self._look_at_data()
        context: dict[str, Any] = {}
        if (dataset := self.train_data) is not None:
            context["image_size"] = dataset.image_size
            context["data_info"] = data_info(dataset)
        options = dict(self.cfg.get("data_preprocessor") or {})
        mixing = mixing_for(self.train_data, options) if options else None
        preprocessor = ImagePreprocessor(mixing, self._memory_format)
        distiller = MODELS.build({**model, **context, "data_preprocessor": preprocessor})
        if problems := self._unmeasurable(distiller):
            raise ConfigError(problems)
        if dataset is not None and (problems := last_batch_problems(distiller, self.train_dataloader)):
            raise ConfigError(problems)
        return distiller

    def _look_at_data(self) -> None:
        """Opens every split: nothing is trained before all of them are there."""
        built = (self.train_loop, self.val_loop, self.test_loop if self.tests else None)
        problems, datasets, metrics = [], {}, {}
        for split, loop in zip(SPLITS, built, strict=True):
            if (loader := getattr(loop, "dataloader", None)) is not None:
                problems += loader_problems(loader, f"{split}_dataloader")
                datasets[split] = loader.dataset
                metrics[split] = getattr(getattr(loop, "evaluator", None), "metrics", ())
                if not problems:
                    problems += open_banks(metrics[split], loader.dataset, split, self.seed, self.device)
        problems = problems or label_problems(datasets, metrics)
        if problems:
            raise ConfigError(problems)

    def _unmeasurable(self, distiller: Distiller) -> list[str]:
        problems = []
        for split, loop in (("val", self.val_loop), ("test", self.test_loop if self.tests else None)):
            if loop is not None and hasattr(loop, "evaluator"):
                classes = len(loop.dataloader.dataset.classes)
                problems += unmeasurable(loop.evaluator.metrics, split, distiller, classes)
        return problems

    @property
    def _memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.cfg.get("channels_last") else torch.preserve_format

    def build_dataloader(  # type: ignore[override]
        self, dataloader: Any, seed: int | None = None, diff_rank_seed: bool = False
    ) -> DataLoader[Any] | InMemoryLoader:
        """Builds a loader as :func:`build_loader` does.

        The order of the images is one for all processes, so ``diff_rank_seed`` does not concern it.
        """
        if not isinstance(dataloader, Mapping):
            return dataloader
        return build_loader(dataloader, seed, self.device)

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        model = model.to(self.device).to(memory_format=self._memory_format)
        return wrap(model, self.device) if self.distributed else model

    def register_hooks(self, default_hooks: Any = None, custom_hooks: Any = None) -> None:
        """Registers the loss guard, which every run has, and the hooks of the config."""
        self._guard = LossGuard()
        self.register_hook(self._guard)
        self.register_hook(UnreadableImagesHook())
        super().register_hooks(default_hooks, custom_hooks)
        if (progress := self.hook(ProgressHook)) is not None:
            self._guard.interval = progress.interval

    def register_default_hooks(self, hooks: Mapping[str, Any] | None = None) -> None:
        """Registers ``DEFAULT_HOOKS`` as the config changes them, and the hooks that its other options make."""
        defaults = merge(DEFAULT_HOOKS, {"summary": {"cka": self.cfg.get("cka")}})
        for hook in merge(defaults, hooks or {}).values():
            if hook is not None:
                self.register_hook(dict(hook))
        for key, option in OPTIONS.items():
            if (made := option.hook(self.cfg.get(key))) is not None:
                if isinstance(made, TeacherCacheHook):
                    made.fix_views(self)
                self.register_hook(made)
        if self.distributed:
            self.register_hook({"type": "SyncStatisticsHook"})

    def register_hook(self, hook: Any, priority: Any = None) -> None:
        super().register_hook(hook, priority)
        self._called: dict[str, list[Callable[..., Any]]] = {}

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        """Calls the hooks that define a stage; mmengine's calls all of them at each stage, twice in every step."""
        if fn_name not in self._called:
            self._called[fn_name] = [getattr(hook, fn_name) for hook in self.hooks if _acts(hook, fn_name)]
        for act in self._called[fn_name]:
            act(self, **kwargs)

    def build_train_loop(self, loop: Any) -> Any:
        """Builds an :class:`EpochLoop` or :class:`IterLoop`, as ``by_epoch`` says, where the config names no other."""
        if isinstance(loop, Mapping) and "type" not in loop:
            options = dict(loop)
            by_epoch = options.pop("by_epoch", True)
            loop = {"type": "EpochLoop" if by_epoch else "IterLoop", **options}
        return with_batches(super().build_train_loop(loop), "train_dataloader")

    def build_val_loop(self, loop: Any) -> Any:
        """Builds a :class:`ValidationLoop`, where the config names no other."""
        loop = {"type": "ValidationLoop", **loop} if isinstance(loop, Mapping) else loop
        return with_batches(super().build_val_loop(loop), "val_dataloader")

    def build_test_loop(self, loop: Any) -> Any:
        return with_batches(super().build_test_loop(loop), "test_dataloader")

    def scale_lr(self, optim_wrapper: Any, auto_scale_lr: Mapping[str, Any] | None = None) -> None:
        """Multiplies the rate, as ``auto_scale_lr`` says, by what the images of one update are of its base_batch_size.

        These are the batches of all processes, and of all that are accumulated, which mmengine does not count.
        """
        if not (auto_scale_lr and auto_scale_lr.get("enable")):
            return
        base = auto_scale_lr["base_batch_size"]
        super().scale_lr(optim_wrapper, {"enable": True, "base_batch_size": base / self._accumulated})
        self.rate_scale = self.total_batch / base
        if settings := optim_wrapper.base_param_settings:  # of no parameter: what mmengine's logs call the base rate
            settings["lr"] *= self.rate_scale

    @property
    def total_batch(self) -> int:
        """Images of one update."""
        return self.world_size * self._accumulated * int(self.cfg.train_dataloader.batch_size)

    @property
    def _accumulated(self) -> int:
        return int(self.cfg.optim_wrapper.get("accumulative_counts", 1))

    def build_param_scheduler(self, scheduler: Any) -> Any:
        """Builds the schedules, in the units that the loop counts in, and of the scaled rate."""
        schedules = [scaled(schedule, self.rate_scale) for schedule in as_list(scheduler)]
        if not isinstance(self.train_loop, EpochBasedTrainLoop):
            schedules = in_iterations(schedules, self.max_iters, len(self.train_dataloader))
        return super().build_param_scheduler(schedules)

    @cached_property
    def teacher_metrics(self) -> dict[str, float]:
        """The teacher's metrics on the validation set; empty where there is no teacher or no such set.

        They never change, for the teacher is frozen: it is evaluated when they are asked for the first time, which all
        processes of a job must do together.
        """
        loop = self.val_loop
        if self.distiller.teacher is None or loop is None:
            return {}
        return evaluate(self.model, loop.dataloader, loop.evaluator, [TEACHER])

    def compile_model(self) -> None:
        """Compiles what one batch's losses are computed by."""
        if options := self.cfg.get("compile"):
            distiller: Any = self.distiller
            distiller.values = torch.compile(distiller.values, **({} if options is True else options))
            say("compile the first steps take longer")

    @property
    def distiller(self) -> Distiller:
        """The distiller itself, whatever wraps it."""
        return unwrapped(self.model)

    @property
    def tests(self) -> bool:
        """Whether its config has a test split."""
        return self.cfg.get("test_dataloader") is not None

    @property
    def train_data(self) -> Any:
        """The training data set; None without one."""
        return getattr(getattr(self.train_loop, "dataloader", None), "dataset", None)

    def hook(self, kind: type[H]) -> H | None:
        """The first hook of a class."""
        return next((hook for hook in self.hooks if isinstance(hook, kind)), None)

    @property
    def checkpoints(self) -> AtomicCheckpointHook:
        """The hook that saves."""
        found = self.hook(AtomicCheckpointHook)
        if found is None:
            raise FBTError("default_hooks.checkpoint is None: there is nothing that could save this run")
        return found

    def check_losses(self, done: int) -> None:
        """Reads the losses since the last interval.

        Args:
            done: iterations that were made.

        Raises:
            NotFinite: with the first that was not finite.
        """
        self._guard.check(done)

    def has_moved(self) -> bool:
        """Whether steps have changed more than the weights; see :meth:`LossGuard.has_moved`."""
        return self._guard.has_moved(self)

    def rewind(self, iteration: int, bad: int) -> None:
        """Takes schedules and losses back to before an iteration; see :meth:`LossGuard.rewind`."""
        self._guard.rewind(self, iteration, bad)

    def train(self) -> nn.Module:
        """Trains as mmengine does; the progress bar and the handling of signals end with it, whatever happens.

        Raises:
            FBTError: if a loss was not finite, a file could not be written, or another process is gone; the message
                says which checkpoint holds the last good state.
            Interrupted: after a signal.
        """
        try:
            with warnings.catch_warnings(), in_one_line(self), one_run(Path(self.work_dir)):
                # Torch warns so whenever gradients are accumulated.
                warnings.filterwarnings("ignore", "Detected call of `scheduler.step", module="mmengine")
                self.start_clock()
                return super().train()
        finally:
            for hook in self.hooks:
                if isinstance(hook, ProgressHook | StopHook):
                    hook.close()

    def load_or_resume(self) -> None:
        """Goes on from a checkpoint if asked to, and never silently starts over."""
        if not self._loaded:
            begin(self)
            self._loaded = True

    @property
    def seconds(self) -> float:
        """Seconds of training so far: since :meth:`start_clock`, and those that its checkpoint had behind it."""
        return self._seconds_before + time.perf_counter() - self._began

    def start_clock(self) -> None:
        """Begins to count seconds; a training loop calls it before its first step."""
        self._began = time.perf_counter()

    def resume(
        self,
        filename: str,
        resume_optimizer: bool = True,
        resume_param_scheduler: bool = True,
        map_location: Any = "cpu",
    ) -> None:
        """Takes up a run at the iteration of a checkpoint, so that it ends with the bits it would have ended with.

        Raises:
            FBTError: if the checkpoint is missing, damaged, another model's, or of a run with another seed, batch size,
                data set or number of processes.
        """
        self.resuming = True
        self._seconds_before = take_up(self, filename, resume_optimizer, resume_param_scheduler)

    def load_checkpoint(
        self, filename: str, map_location: Any = "cpu", strict: bool = True, revise_keys: Any = None
    ) -> dict[str, Any]:
        """Loads a checkpoint of ours (``weights_only``); its names and shapes must fit.

        Raises:
            FBTError: if it is missing, damaged, or another model's.
        """
        checkpoint = load(self, filename, strict)
        self._loaded = True
        return checkpoint

    def dump_config(self) -> None:
        """Nothing: mmengine calls it when the folder may still hold another run's files.

        :meth:`load_or_resume` writes ``config.py``, once those are set aside.
        """

    def log_start(self) -> None:
        """Device, seed and config, for the log file."""
        rank, world = get_dist_info()
        self.logger.info(
            f"device {self.device}, rank {rank} of {world}, seed {self.seed}, config:\n{self.cfg.pretty_text}"
        )


def _acts(hook: Hook, stage: str) -> bool:
    """Whether a hook's class defines a stage itself."""
    return stage in hook.get_triggered_stages() if stage in Hook.stages else hasattr(hook, stage)


_NOT_FOR_USERS = ("FileClient", "HardDiskBackend", "save_param_scheduler")


def _actionable(record: logging.LogRecord) -> bool:
    """Drops mmengine's warnings about its own parts, about which a user can do nothing."""
    return not any(part in record.getMessage() for part in _NOT_FOR_USERS)


def _has(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None
