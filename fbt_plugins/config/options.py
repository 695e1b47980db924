"""The options of a run: keys of its config beside those that are mmengine's own, in one table."""

from __future__ import annotations

import inspect
import math
import pkgutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from mmengine.config import Config
from mmengine.hooks import Hook

from ..errors import ConfigError, is_number

DEFAULT_HOOKS: dict[str, dict[str, Any]] = {
    "step_seed": {"type": "StepSeedHook"},
    "sampler_seed": {"type": "DistSamplerSeedHook"},
    "param_scheduler": {"type": "ParamSchedulerHook"},
    "teacher_check": {"type": "TeacherCheckHook"},
    "progress": {"type": "ProgressHook"},
    "checkpoint": {"type": "AtomicCheckpointHook"},
    "stop": {"type": "StopHook"},
    "plain_checkpoint": {"type": "PlainCheckpointHook"},
    "summary": {"type": "SummaryHook"},
}
"""What every run does beside training; ``default_hooks`` in a config changes their arguments, or None drops one."""


ABSENT: Final = object()
"""Default of an option that is in a config only where somebody has put it there."""


def _in_percent(value: float) -> bool:
    return is_number(value) and 0 <= value <= 100


@dataclass(frozen=True)
class Reference:
    """A published figure, which a run is compared with.

    Attributes:
        top1: the figure, in percent.
        source: where it was published.

    Raises:
        ConfigError: if the figure is no percentage.
    """

    top1: float
    source: str

    def __post_init__(self) -> None:
        if not _in_percent(self.top1):
            raise ConfigError(f"reference: top1 is in percent, from 0 to 100, not {self.top1!r}")


@dataclass(frozen=True)
class WithoutTeacher:
    """What the student reaches alone, with the same training: a figure that is shown beside a run's own.

    Attributes:
        top1: mean of some runs, in percent.
        std: their standard deviation.
        seeds: how many runs.
        training: their :func:`~fbt_plugins.config.hashing.training_hash`. A run of another training does not show it.
        command: what repeats them.

    Raises:
        ConfigError: if a figure cannot be what it is said to be.
    """

    top1: float
    std: float
    seeds: int
    training: str
    command: str

    def __post_init__(self) -> None:
        wrong = []
        if not _in_percent(self.top1):
            wrong.append(f"top1 is in percent, from 0 to 100, not {self.top1!r}")
        if not is_number(self.std) or self.std < 0:
            wrong.append(f"std is a number from 0, not {self.std!r}")
        if type(self.seeds) is not int or self.seeds < 1:
            wrong.append(f"seeds is how many runs, a whole number from 1, not {self.seeds!r}")
        if wrong:
            raise ConfigError([f"without_teacher: {line}" for line in wrong])


@dataclass(frozen=True)
class Option:
    """A key of a run's config.

    Attributes:
        about: what it is, in a line.
        default: its value in a config that does not say it; ``ABSENT`` for none. Results are known by the hash of
            their configs, defaults included, so an option that comes later has no default here, and is off where it is
            absent: with a default, all earlier results would seem to be of other configs.
        makes: what its dict is the arguments of, as "module:name": this room lies below the modules that are named
            here, so the name is looked up by those who use it. None where its value is no such dict.
        switch: whether it may be True or False.
        affects_results: whether a result, a search's too, may depend on it; only then it is in a config's hash.
        of_the_start: whether it says how a run is started and not what it is; then it is not in the run's config.py.
    """

    about: str
    default: Any = ABSENT
    makes: str | None = None
    switch: bool = False
    affects_results: bool = True
    of_the_start: bool = False

    @property
    def factory(self) -> Callable[..., Any] | None:
        """What makes something of its dict."""
        return None if self.makes is None else pkgutil.resolve_name(self.makes)

    def hook(self, value: Mapping[str, Any] | None) -> Hook | None:
        """The hook that a config's value makes, where it makes one.

        Raises:
            ConfigError: if the hook refuses the value.
        """
        if value is None or not (inspect.isclass(factory := self.factory) and issubclass(factory, Hook)):
            return None
        return factory(**value)


def _start(about: str) -> Option:
    return Option(about, affects_results=False, of_the_start=True)


OPTIONS: Mapping[str, Option] = {
    "default_hooks": Option("what every run does beside training, by name", DEFAULT_HOOKS),
    "randomness": Option("the seed of everything random, which is in no hash, and torch's switches", {"seed": 0}),
    "cell": Option("pair, method and description, where the config is a matrix's cell", None, affects_results=False),
    "reference": Option("a published figure to compare with", None, f"{__name__}:Reference", affects_results=False),
    "without_teacher": Option(
        "what the student reaches alone with the same training, for the closing table",
        makes=f"{__name__}:WithoutTeacher",
        affects_results=False,
    ),
    "teacher_run": Option(
        "how a missing teacher is made", None, "fbt_plugins.engine.teacher_run:TeacherRun", affects_results=False
    ),
    "publish": Option(
        "a file NAME.safetensors: the trained student is kept there as a teacher for other runs",
        None,
        affects_results=False,
    ),
    "teacher_cache": Option(
        "what the teacher knows about fixed views of each image, from files",
        None,
        "fbt_plugins.engine.hooks.teacher_cache:TeacherCacheHook",
    ),
    "ema": Option("a moving average of the weights", None, "fbt_plugins.engine.hooks.ema:EMAHook"),
    "cka": Option(
        "how alike the stages are, measured at the end",
        None,
        "fbt_plugins.analysis.cka:StageSimilarity",
        affects_results=False,
    ),
    "compile": Option(
        "whether models and losses are compiled, or the arguments of torch.compile", None, "torch:compile", switch=True
    ),
    "channels_last": Option(
        "whether images and weights have the memory format channels_last, which tensor cores like", False, switch=True
    ),
    "device": _start("where it runs: cpu, cuda or cuda:N; by default the first GPU if there is one"),
    "custom_imports": Option("plugins beside the config: dict(imports=['module', ...])"),
    "search": Option("what a search chooses from, and how"),
    "command": _start("what was typed to start the run"),
    "work_dir": _start("the run's folder"),
    "launcher": _start("who started the processes: none, pytorch, slurm or mpi"),
    "resume": _start("what to go on from: True (the newest checkpoint), a path, or 'auto' (the newest if any)"),
}
"""By key. Keys of mmengine's Runner that are not here have no default and are in the hash where a config has them."""


DEFAULTS: Mapping[str, Any] = {key: o.default for key, o in OPTIONS.items() if o.default is not ABSENT}
"""What a config need not say."""


class _Readable(float):
    """A float that a Python file can say: mmengine writes ``inf`` and ``nan``, which no file knows."""

    def __repr__(self) -> str:
        return f"float('{float(self)}')"


def as_file(config: Mapping[str, Any] | Config, keep: Collection[str] = ()) -> str:
    """A run's config as the text of a Python file.

    How a run was started (``OPTIONS`` says what that is) is left out: folder, device and launcher are the next one's.

    Args:
        config: of a run.
        keep: options of a start that the file needs all the same.
    """
    contents = config.to_dict() if isinstance(config, Config) else dict(config)
    starts = {key for key, option in OPTIONS.items() if option.of_the_start} - set(keep)
    return Config(_readable({key: value for key, value in contents.items() if key not in starts})).pretty_text


def _readable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _readable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_readable(item) for item in value)
    return _Readable(value) if type(value) is float and not math.isfinite(value) else value
