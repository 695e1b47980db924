"""What a run does beside training, one file per hook. Importing this registers them in mmengine's HOOKS."""

from . import (  # noqa: F401
    batchnorm,
    checkpoints,
    progress,
    step_seed,
    stop,
    summary,
    teacher_check,
    topk,
)
