"""The Runner: mmengine's, with what breaks on today's torch, on CPUs and on a second start put right."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from mmengine.config import Config
from mmengine.dist import get_dist_info, is_distributed, master_only
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODELS, VISUALIZERS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from .. import distiller  # noqa: F401 - registers Distiller with mmengine
from ..data import Mixing
from ..data.preprocessor import ImagePreprocessor
from ..errors import FBTError
from ..registry import one_line
from . import checkpoints, metrics, optim, progress, seeding, summary, teacher_check  # noqa: F401 - register themselves
from .checkpoints import find_resume, read_checkpoint
from .config import DEFAULT_HOOKS, merge
from .device import resolve_device
from .files import write_atomic
from .teacher_cache import TeacherCacheHook


class DistillRunner(Runner):
    """mmengine's Runner for a :class:`Distiller`.

    A config says what mmengine's Runner takes, and besides: ``device`` ("cpu", "cuda", "cuda:1"; by default the first
    GPU if there is one), ``resume`` (True, or the path of a checkpoint), ``teacher_cache`` (the arguments of
    :class:`TeacherCacheHook`; None is off).
    """

    model: Any
    _train_dataloader: Any
    _names: ClassVar[set[str]] = set()

    @property
    def _experiment_name(self) -> str:
        """mmengine's name of the run, under which it keeps logger, message hub and visualizer for the whole process.

        It ends in the second of the start, so two runs of one second would share them, and with them their best score.
        """
        return self._unique_name

    @_experiment_name.setter
    def _experiment_name(self, name: str) -> None:
        self._unique_name = name
        while self._unique_name in self._names:
            self._unique_name += "+"
        self._names.add(self._unique_name)

    @classmethod
    def from_cfg(cls, cfg: Config) -> DistillRunner:
        """Builds a run.

        Raises:
            FBTError: for whatever in the config or the machine stops it; ``FBT_DEBUG=1`` shows where.
        """
        try:
            runner: DistillRunner = super().from_cfg(cfg)  # type: ignore[assignment]
        except FBTError:
            raise
        except Exception as error:  # mmengine, torch and plugins refuse things with any exception
            raise FBTError(f"config {cfg.filename}: the run cannot be built: {one_line(error)}") from error
        return runner

    def setup_env(self, env_cfg: dict[str, Any]) -> None:
        self.device = resolve_device(self.cfg.get("device"), self._distributed)
        if self._distributed and not is_distributed() and self.device.type == "cpu" and self._launcher == "pytorch":
            # mmengine's init_dist asks for a CUDA device whatever the backend is.
            torch.distributed.init_process_group("gloo")
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
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
                "name": self._experiment_name,
                "vis_backends": backends,
                "save_dir": self._log_dir,
            }
            return VISUALIZERS.build(visualizer)
        return super().build_visualizer(visualizer)

    def build_model(self, model: Any) -> nn.Module:
        """Builds the distiller, after the training data, whose image size and classes it must fit."""
        if isinstance(model, nn.Module):
            return model
        context: dict[str, Any] = {}
        if self._train_dataloader is not None:
            self._train_dataloader = self.build_dataloader(self._train_dataloader, seed=self.seed)
            dataset: Any = self._train_dataloader.dataset
            context["image_size"] = dataset.image_size
            context["data_info"] = {"num_classes": len(dataset.classes), "num_samples": len(dataset)}
        options = dict(self.cfg.get("data_preprocessor") or {})
        mixing = Mixing(num_classes=context["data_info"]["num_classes"], **options) if options else None
        return MODELS.build({**model, **context, "data_preprocessor": ImagePreprocessor(mixing)})

    @staticmethod
    def build_dataloader(dataloader: Any, seed: int | None = None, diff_rank_seed: bool = False) -> DataLoader[Any]:
        """mmengine's, whose samples become tensors, and whose data set and sampler draw from the run's seed."""
        if isinstance(dataloader, Mapping):
            config = dict(dataloader)
            config.setdefault("collate_fn", {"type": "default_collate"})
            config.setdefault("num_workers", 0)
            config["dataset"] = {"seed": seed or 0, **config["dataset"]}
            dataloader = config
        return Runner.build_dataloader(dataloader, seed, diff_rank_seed)

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        model = model.to(self.device)
        if not self.distributed:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return MMDistributedDataParallel(module=model, device_ids=ids, broadcast_buffers=False)

    def register_default_hooks(self, hooks: Mapping[str, Any] | None = None) -> None:
        """Registers ``DEFAULT_HOOKS`` as the config changes them."""
        for hook in merge(DEFAULT_HOOKS, hooks or {}).values():
            if hook is not None:
                self.register_hook(dict(hook))
        if (cache := self.cfg.get("teacher_cache")) is not None:
            hook = TeacherCacheHook(**cache)
            hook.fix_views(self)
            self.register_hook(hook)
        if self.distributed:
            self.register_hook({"type": "SyncBuffersHook"})

    def train(self) -> nn.Module:
        """mmengine's, after which the terminal is as it was, whatever happened."""
        try:
            return super().train()
        finally:
            for hook in self.hooks:
                if isinstance(hook, progress.ProgressHook):
                    hook.close()

    def load_or_resume(self) -> None:
        """Goes on from a checkpoint if asked to, and never silently starts over."""
        if self._has_loaded:
            return
        if self._resume:
            source = self._resume if isinstance(self._resume, str) else find_resume(Path(self.work_dir))[0]
            self.resume(str(source), map_location="cpu")
        elif self._load_from:
            self.load_checkpoint(self._load_from)

    def load_checkpoint(
        self, filename: str, map_location: Any = "cpu", strict: bool = True, revise_keys: Any = None
    ) -> dict[str, Any]:
        """Loads a checkpoint of ours (``weights_only``); its names and shapes must fit.

        Raises:
            FBTError: if it is missing, damaged, or another model's.
        """
        checkpoint = read_checkpoint(filename)
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        module = getattr(self.model, "module", self.model)
        try:
            module.load_state_dict(checkpoint["state_dict"], strict=strict)
        except RuntimeError as error:
            reason = " ".join(str(error).split(":", 1)[-1].split())
            raise FBTError(f"checkpoint {filename!r} is not of this config's model: {reason[:300]}") from error
        self._has_loaded = True
        return checkpoint

    @master_only
    def dump_config(self) -> None:
        """Writes ``config.py``, complete and re-runnable."""
        write_atomic(Path(self.work_dir) / "config.py", self.cfg.pretty_text)
        # Formatting takes a third of a second and is done again at every save: once, here, is enough.
        object.__setattr__(self.cfg, "_format_python_code", False)

    def _log_env(self, env_cfg: dict[str, Any]) -> None:
        rank, world = get_dist_info()
        self.logger.info(
            f"device {self.device}, rank {rank} of {world}, seed {self.seed}, config:\n{self.cfg.pretty_text}"
        )


def _actionable(record: logging.LogRecord) -> bool:
    """Not what mmengine says about its own deprecated parts: a user can do nothing about it."""
    text = record.getMessage()
    return "FileClient" not in text and "HardDiskBackend" not in text


def _has(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None
