"""Words about config keys that are no argument of ours: mmengine's and torch's, and keys that only a table has."""

TOP = {
    "Models": {
        "model": "The models and what they teach each other: see [model](#model).",
        "data_preprocessor": "Mixup and CutMix of training batches: see [data_preprocessor](#data_preprocessor).",
        "ema": None,
        "compile": None,
        "channels_last": None,
        "load_from": "A checkpoint whose weights the run begins with. Unlike `resume`, training starts at step 0.",
    },
    "Teacher": {"teacher_run": None, "teacher_cache": None, "publish": None},
    "Data": {
        "train_dataloader": "The training images: see [dataloaders](#dataloaders).",
        "val_dataloader": "The validation images, by which the best checkpoint is chosen.",
        "test_dataloader": "The test images, looked at once, at the end.",
    },
    "Training": {
        "train_cfg": "How long training takes and when it validates: see [train_cfg](#train_cfg).",
        "val_cfg": "`dict()` where there is a `val_dataloader`, else `None`.",
        "test_cfg": "`dict()` where there is a `test_dataloader`, else `None`.",
        "optim_wrapper": "Optimizer, precision, accumulation, clipping: see [optim_wrapper](#optim_wrapper).",
        "param_scheduler": "How the learning rate changes: see [param_scheduler](#param_scheduler).",
        "auto_scale_lr": "Scales the learning rate with the batch: see [auto_scale_lr](#auto_scale_lr).",
    },
    "Measures": {
        "val_evaluator": "What validation measures: a dict or a list of them; see [evaluators](#evaluators).",
        "test_evaluator": "What the test at the end measures.",
        "cka": None,
        "reference": None,
        "without_teacher": None,
    },
    "The run": {
        "work_dir": None,
        "randomness": None,
        "device": None,
        "launcher": None,
        "resume": None,
        "default_hooks": None,
        "custom_hooks": "Further hooks, mmengine's or your own: a list of `dict(type=NAME, ...)`, each with a "
        "`priority` if it wants one.",
        "custom_imports": None,
        "experiment_name": "Name in mmengine's log. By default the config's name and the time.",
        "log_level": "What mmengine's log file holds: `DEBUG`, `INFO`, `WARNING` or `ERROR`.",
        "log_processor": "mmengine's `LogProcessor`, for the log file.",
        "visualizer": "mmengine's `Visualizer`; by default one that writes for TensorBoard, where that is installed.",
        "env_cfg": "`dict(dist_cfg=dict(backend=..., timeout=SECONDS))`: how several processes find each other.",
        "default_scope": "mmengine's registry scope. Leave it as it is.",
        "cell": None,
        "command": None,
    },
    "Many runs": {
        "pairs": "Pairs of models by name: see [matrices](#matrices).",
        "methods": "Methods by name: see [matrices](#matrices).",
        "seeds": "Seeds of each pair and method: see [matrices](#matrices).",
        "controls": "Methods that the others are compared with: see [matrices](#matrices).",
        "search": None,
    },
}
"""Keys at the top of a config, in the page's order. None: ``OPTIONS`` says what it is."""

TYPES = {
    "model": "dict",
    "train_dataloader": "dict",
    "val_dataloader": "dict",
    "test_dataloader": "dict",
    "optim_wrapper": "dict",
    "param_scheduler": "dict or list of dict",
    "val_evaluator": "dict or list of dict",
    "test_evaluator": "dict or list of dict",
    "default_hooks": "dict of dict",
    "custom_hooks": "list of dict",
    "data_preprocessor": "dict",
    "visualizer": "dict",
    "resume": "bool or str",
    "launcher": "str",
    "device": "str",
    "work_dir": "str",
    "publish": "str",
    "command": "str",
    "pairs": "dict of dict",
    "methods": "dict of dict",
    "seeds": "list of int",
    "controls": "dict of str",
    "compile": "bool or dict",
    "channels_last": "bool",
    "randomness": "dict",
}
"""Of keys at the top whose signature says something else, or nothing."""

DEFAULTS = {
    "work_dir": "`work_dirs/NAME`",
    "randomness": "`dict(seed=0)`",
    "default_hooks": "[all of these](#default_hooks)",
    "env_cfg": "by device",
    "seeds": "`[0]`",
    "compile": "`False`",
    "launcher": "`'none'`",
}

LOADER = {
    "dataset": "`dict(type=NAME, ...)`: one of the [data sets](#data-sets).",
    "sampler": "`dict(type=NAME, ...)`: the order of the images; one of the [samplers](#samplers).",
    "batch_size": "Images in a batch, of each process.",
    "num_workers": "Processes that read images. 0: the training process itself. `'auto'`: one for each core, up to 8.",
    "drop_last": "Leaves out a last batch that is smaller than the others.",
    "in_memory": "Holds all images on the device and augments whole batches there. For small data sets of ours.",
    "num_batch_per_epoch": "Batches of an epoch, where it is to have fewer than there are.",
    "persistent_workers": "Keeps the reading processes from one epoch to the next.",
    "prefetch_factor": "Batches that each reading process prepares in advance.",
    "pin_memory": "Copies batches to memory that a GPU reads faster.",
    "timeout": "Seconds to wait for a batch from a reading process; 0 is for ever.",
    "batch_sampler": "Who makes batches of the sampler's images: your own, which takes `sampler` and `batch_size`.",
    "collate_fn": "How samples become a batch; by default they are stacked.",
    "worker_init_fn": "What each reading process does first.",
}
HOOKS = {
    "sampler_seed": "mmengine's, which tells samplers that ask for it which epoch begins.",
    "param_scheduler": "mmengine's, which lets the schedules of `param_scheduler` take their steps.",
}
SAMPLERS = {
    "DefaultSampler": "mmengine's. Its `shuffle` (`True`) and `round_up` (`True`) are those of `SeededSampler`.",
    "InfiniteSampler": "mmengine's, which never ends an epoch: for training by iterations alone.",
}

LOOPS = {
    "by_epoch": ("bool", "required", "Whether training is counted in epochs (`max_epochs`) or steps (`max_iters`)."),
    "max_epochs": "Epochs of training.",
    "max_iters": "Steps of training.",
    "val_begin": "Epoch or step from which on it validates.",
    "val_interval": "Epochs or steps between two validations. The last epoch is validated in any case.",
    "dynamic_intervals": "Other intervals from some point on: `[(begin, interval), ...]`.",
}

WRAPPER = {
    "type": ("str", "`'AutocastOptimWrapper'`", "Ours. mmengine's others know fewer precisions, or no CPU."),
    "optimizer": ("dict", "required", "`dict(type=NAME, lr=..., ...)`: see [optimizer](#optimizer)."),
    "precision": None,
    "accumulative_counts": (
        "int",
        "`1`",
        "Batches whose gradients make one update; the effective batch is that many times larger.",
    ),
    "clip_grad": (
        "dict",
        "`None`",
        "`dict(max_norm=1.0)` scales gradients down to a norm; `dict(type='value', clip_value=1.0)` cuts each value.",
    ),
    "constructor": ("str", "`'MergedGroupConstructor'`", "What sorts parameters into groups."),
    "paramwise_cfg.decay_vectors": ("bool", "`False`", "Whether biases, norms and other vectors decay as well."),
    "paramwise_cfg.layer_decay": (
        "float",
        "`None`",
        "Multiplies the learning rate by this for each layer of the student below its last (BEiT); 0.75 for example.",
    ),
    "paramwise_cfg.custom_keys": (
        "dict",
        "`{}`",
        "`dict(log_temperature=dict(lr_mult=0.1))`: another rate for parameters with this in their name.",
    ),
}

OPTIMIZERS = {
    "SGD": ("lr", "momentum", "weight_decay", "nesterov"),
    "Adam": ("lr", "betas", "eps", "weight_decay"),
    "AdamW": ("lr", "betas", "eps", "weight_decay"),
    "RMSprop": ("lr", "alpha", "eps", "weight_decay", "momentum"),
}
"""Those that people take, with what they set of them."""

SCHEDULERS = {
    "LinearLR": ("From one share of the rate to another: a warmup.", ("start_factor", "end_factor")),
    "CosineAnnealingLR": ("Down to `eta_min` along a cosine.", ("T_max", "eta_min")),
    "MultiStepLR": ("Times `gamma` at each milestone.", ("milestones", "gamma")),
    "StepLR": ("Times `gamma` every `step_size`.", ("step_size", "gamma")),
    "ExponentialLR": ("Times `gamma` at each step.", ("gamma",)),
    "PolyLR": ("Down to `eta_min` along a polynomial.", ("eta_min", "power")),
    "ConstantLR": ("Times `factor` until `end`.", ("factor",)),
    "ReduceOnPlateauLR": (
        "Times `factor` when the metric `monitor` gets no better.",
        ("monitor", "rule", "factor", "patience", "min_value"),
    ),
}
"""mmengine's, with their own arguments."""
SCHEDULE = {
    "begin": ("int", "`0`", "Epoch or step at which it begins."),
    "end": ("int", "the end", "Epoch or step at which it ends."),
    "by_epoch": ("bool", "`True`", "Whether it counts epochs or steps."),
    "convert_to_iter_based": (
        "bool",
        "`False`",
        "With `by_epoch=True`: a smooth course within each epoch, in place of one step at its end.",
    ),
}

SCALE = {
    "base_batch_size": ("int", "required", "Images of one update that the config's learning rate is meant for."),
    "enable": (
        "bool",
        "`False`",
        "Whether to multiply the rate by what an update really has, all processes and accumulation counted.",
    ),
}
RANDOMNESS = {
    "seed": ("int", "`0`", "Seed of everything random: weights, order, augmentation, dropout, splices."),
    "deterministic": ("bool", "`False`", "Asks torch for deterministic kernels on GPUs, which may be slower."),
    "diff_rank_seed": (
        "bool",
        "`False`",
        "mmengine's. What is random here depends on the seed and the process anyway.",
    ),
}
EDGE = {
    "name": ("str", "required", "`GIVER_to_RECEIVER`, of `teacher`, `student` and the names of fusions."),
    "feature_loss": ("dict", "the model's", "Loss of features on this edge; `None` for none."),
    "logit_loss": ("dict", "the model's", "Loss of logits on this edge; `None` for none."),
    "stage_loss": ("dict", "the model's", "Loss of stage outputs on this edge, between teacher and student alone."),
}
FUSION = {
    "splice": (
        "str or list of str",
        "`'auto'`",
        "Which stages come from whom, such as `S1-3+T4`. Of a list, each step draws one.",
    ),
    "tail": (
        "str",
        "`'borrowed'`",
        "`'borrowed'`: stages and head behind a junction are their owner's. `'copied'`: the fusion model trains copies "
        "of its own.",
    ),
}
LOSS = {
    "weight": ("float", "`1.0`", "What the loss is multiplied by."),
}
MATRIX = {
    "pairs.NAME": ("dict", "required", "Config keys of one pair of models, laid over the rest of the config."),
    "pairs.NAME.methods.METHOD": ("dict", "`{}`", "Config keys of one method for this pair alone."),
    "pairs.NAME.reference.METHOD": ("dict", "`None`", "A published figure: `dict(top1=78.03, source='...')`."),
    "methods.NAME": ("dict", "required", "Config keys of one method, laid over the pair's."),
    "methods.NAME.about": ("str", "`''`", "A line for readers of reports."),
    "methods.NAME.pairs": ("str or list of str", "all", "Patterns of the pairs that it is for, such as `'*_deit-t'`."),
    "methods.NAME.seeds": ("list of int", "the matrix's", "Seeds of this method's runs."),
    "methods.NAME.best_of": (
        "dict",
        "`None`",
        "`{seed: [methods]}`: it has no runs of its own; of each seed it is the run that validation prefers.",
    ),
    "seeds": ("list of int", "`[0]`", "Seeds of the runs of each pair and method."),
    "controls": ("dict", "`{}`", "`{METHOD: 'words'}`: methods that reports compare all others with."),
}
SPACE = {
    "list": "One of these values, of any form that a config can hold.",
    "dict(low=..., high=..., step=..., log=...)": "A number from `low` to `high`, both included; whole where both are.",
    "dict(switches=(1, 2), strategies='all')": (
        "For `model.fusion` alone: every splice with so many junctions, with every registered strategy that can build "
        "it. `strategies` may be a list of configs instead."
    ),
}
