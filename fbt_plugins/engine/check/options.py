"""Keys at the top of a config, and its run options."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path

from mmengine.registry import OPTIM_WRAPPERS

from ...config.options import OPTIONS
from ...errors import nearest
from ...models.weights import SUFFIX, check_torch_file
from ..checkpoints.files import find_resume
from ..device import resolve_device
from ..runner import DistillRunner
from .findings import Findings

_NO_SHARDS = (
    "FSDP and DeepSpeed are not supported: they take parameters apart, and a fusion model runs stages that it shares "
    "with teacher and student; drop this key: --launcher sets up DistributedDataParallel"
)
OTHER_ENGINES = {
    "model_wrapper_cfg": _NO_SHARDS,
    "strategy": _NO_SHARDS,
    "runner_type": "there is one runner here, DistillRunner; drop this key",
}


def top_level(findings: Findings) -> None:
    """Which keys there are, and which there must be."""
    known = [*list(inspect.signature(DistillRunner.__init__).parameters)[1:], *OPTIONS]
    for key in findings.config:
        if key in OTHER_ENGINES:
            findings.problems.append(f"{key}: {OTHER_ENGINES[key]}")
        elif key not in known:
            hint = nearest(key, known) or "; helper variables of your own begin with an underscore"
            findings.problems.append(f"unknown key {key!r}{hint}")
    for key in ("model", "work_dir", "train_dataloader", "train_cfg", "optim_wrapper"):
        if findings.config.get(key) is None:
            findings.problems.append(f"{key} is missing")


def options(findings: Findings) -> None:
    """Options that are True or False, and those that something is made of."""
    for key, option in OPTIONS.items():
        value, factory = findings.config.get(key), option.factory
        if value is None or (option.switch and isinstance(value, bool)):
            continue
        if option.switch and not (factory and isinstance(value, Mapping)):
            allowed = f"True, False or {option.makes}'s arguments" if option.makes else "True or False"
            findings.problems.append(f"{key} must be {allowed.replace(':', '.')}, not {value!r}")
        elif option.switch and factory:
            findings.signature(factory, value, key, given=("model",))
        elif factory and findings.built(factory, value, key) is None:
            findings.wrong_options.add(key)


def ema(findings: Findings) -> None:
    """An average of the weights asks its optimizer wrapper whether an update was made."""
    wrapper = findings.config.get("optim_wrapper")
    kind = wrapper.get("type") if isinstance(wrapper, Mapping) else None
    known = OPTIM_WRAPPERS.module_dict.get(str(kind))
    if findings.config.get("ema") is not None and known is not None and not hasattr(known, "trusted"):
        findings.problems.append(f"ema: {kind} does not say which updates were made; drop optim_wrapper.type")


def machine(findings: Findings) -> None:
    """Seed and device."""
    randomness = findings.config.get("randomness") or {}
    seed = randomness.get("seed") if isinstance(randomness, Mapping) else None
    if not isinstance(seed, int | None) or isinstance(seed, bool):
        findings.problems.append(f"randomness.seed: a whole number, not {seed!r}")
    elif seed is not None and not 0 <= seed < 2**32:
        findings.problems.append(f"randomness.seed: from 0 to 2**32 - 1, not {seed}")
    findings.signature(DistillRunner.set_randomness, randomness, "randomness", ("self", "seed"), ("seed",))
    distributed = findings.config.get("launcher", "none") != "none"
    device = findings.config.get("device")
    if isinstance(device, str | None):
        findings.collect("device", resolve_device, device, distributed)
    else:
        findings.problems.append(f"device: one of cpu, cuda and cuda:N, not {device!r}")


def start(findings: Findings) -> None:
    """What a run begins with or goes on from."""
    for key in ("load_from", "resume"):
        value = findings.config.get(key)
        if isinstance(value, str) and value != "auto":
            if Path(value).is_file():
                findings.collect(key, check_torch_file, Path(value))
            else:
                findings.problems.append(f"{key}: {value!r}: no such file")
    if findings.config.get("resume") is True and findings.config.get("work_dir"):
        # Which of them is the newest does not matter here, so neither does the length of an epoch.
        findings.collect("", find_resume, Path(findings.config["work_dir"]), 1)


def publish(findings: Findings) -> None:
    """Where a run's student goes as a teacher."""
    if (target := findings.config.get("publish")) is None:
        return
    if not isinstance(target, str) or Path(target).suffix != SUFFIX:
        findings.problems.append(f"publish: a file NAME{SUFFIX}, not {target!r}")
    if not any(findings.config.get(f"{split}_evaluator") for split in ("val", "test")):
        findings.problems.append("publish: a teacher's accuracy must be known; set val_dataloader or test_dataloader")
