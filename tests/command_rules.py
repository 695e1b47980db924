"""What is known of each program that documents call: whether a command would run, and what it needs."""

from __future__ import annotations

import argparse
import ast
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import pytest
import timm
from typed_commands import ROOT

from fbt_plugins import ARCHITECTURES, FUSIONS
from fbt_plugins.commands import MODULES, parser_of
from fbt_plugins.config.loading import complete, load_config, load_matrix, run_config, shipped_methods
from fbt_plugins.config.locating import shipped_configs
from fbt_plugins.engine.check import check_cells
from fbt_plugins.engine.one_line.models import named
from fbt_plugins.errors import TOOLS, FBTError

TOOL = {file: name for name, file in TOOLS.items()}
FLAGSHIP = "fbt_convnext_resmlp"
TEMPLATE = ROOT / "fbt_plugins" / "commands" / "templates"
MATRICES = {"compare": "fashion_mnist", "choose": "fashion_mnist", "search": "search/fusion_ratio"}
STANDS_FOR = {
    "RUN": f"work_dirs/{FLAGSHIP}",
    "CONFIG_OR_RUN": f"work_dirs/{FLAGSHIP}",
    "IMAGES...": "photos/",
    "FORMAT": "onnx",
    "M": "fbt",
    "FILE": "best.pth",
    "timm:NAME": "timm:resnet18",
}
"""What words in capitals mean in a sentence."""
RUNS = ("work_dirs/", "out", "trial")
"""How the folders begin that an earlier command has made."""
MADE = re.compile(r"(out|work_dirs)/.*\.py$|my_\w+\.py$")
"""Configs that an earlier command has written, or the reader."""
DATA = {"CIFAR10": "CIFAR-10", "CIFAR100": "CIFAR-100", "FashionMNIST": "Fashion-MNIST", "ImageFolder": "ImageNet"}


class WrongCommandError(AssertionError):
    """A command that does not work, and why."""


# ---- what is known of each program ----------------------------------------------------------------------------------


def check(words: Sequence[str], sentence: bool = False) -> set[str]:
    """Holds a command against what it would run.

    Args:
        words: the program and its arguments.
        sentence: whether capitals and dots may stand for arguments.

    Returns:
        What it needs that is not here.

    Raises:
        WrongCommandError: if it would not run.
    """
    program, *arguments = words
    if program not in PROGRAMS:
        raise WrongCommandError(f"no rule covers {program!r}")
    return PROGRAMS[program](arguments, sentence)


def fbt(arguments: Sequence[str], sentence: bool) -> set[str]:
    if not arguments or arguments[0] in ("--help", "--version") or (sentence and arguments[0] in ("COMMAND", "NAME")):
        return set()
    command, *rest = arguments
    if command not in MODULES:
        raise WrongCommandError(f"fbt has no command {command!r}")
    parser = parser_of(command)
    if "..." in rest or (sentence and (not rest or (not {"CONFIG", "RUN"} & set(rest) and _only_options(rest)))):
        known = parser._option_string_actions
        if wrong := [word for word in rest if word.startswith("--") and word not in known]:
            raise WrongCommandError(f"fbt {command} has no option {wrong[0]}")
        return set()
    meant = STANDS_FOR | {"CONFIG": MATRICES.get(command, FLAGSHIP)}
    rest = [meant.get(word, word) for word in _one_of_each(rest)] if sentence else rest
    try:
        args = parser.parse_args(rest)
    except SystemExit as end:
        raise WrongCommandError(f"fbt {command} does not take these arguments") from end
    try:
        return COMMANDS[command](args)
    except FBTError as error:
        raise WrongCommandError(str(error)) from error


def _only_options(words: Sequence[str]) -> bool:
    return words[0].startswith("-")


def _one_of_each(words: Sequence[str]) -> Iterator[str]:
    """``[--split test|val]`` as ``--split test``."""
    for word in words:
        yield word.strip("[]").partition("|")[0]


def python(arguments: Sequence[str], sentence: bool) -> set[str]:
    if arguments[0] == "-m":
        module = arguments[1]
        path = ROOT / (module.replace(".", "/") + ".py")
        if module not in ("build", "pytest", "venv", "mkdocs") and not path.is_file():
            raise WrongCommandError(f"there is no module {module}")
        return set()
    file = ROOT / arguments[0]
    if file.name in TOOL and file.parent == ROOT / "tools":
        return fbt([TOOL[file.name], *arguments[1:]], sentence)
    if not file.is_file() and not (sentence and file.name == "NAME.py"):
        raise WrongCommandError(f"there is no {arguments[0]}")
    return set()


def torchrun(arguments: Sequence[str], sentence: bool) -> set[str]:
    from torch.distributed.run import get_args_parser

    args = get_args_parser().parse_args(list(arguments))
    called = [args.training_script, *args.training_script_args]
    needs = fbt(called[1:], sentence) if called[0] == "fbt" and args.no_python else python(called, sentence)
    several = args.nnodes != "1:1" or int(args.nproc_per_node) > 2
    return needs | ({"GPUs"} if several else set())


def srun(arguments: Sequence[str], sentence: bool) -> set[str]:
    start = next(i for i, word in enumerate(arguments) if word in PROGRAMS)
    return check(arguments[start:], sentence) | {"a cluster"}


def pip(arguments: Sequence[str], sentence: bool) -> set[str]:
    """Installing is tested by .ci; here, whether folders and extras are there."""
    if arguments[0] != "install":
        raise WrongCommandError(f"no rule covers pip {arguments[0]}")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in arguments[1:]:
        name, _, of = word.rstrip("]").partition("[")
        if name in (".", "fbt-plugins"):
            if wrong := set(filter(None, of.split(","))) - extras.keys():
                raise WrongCommandError(f"there is no extra {', '.join(sorted(wrong))}")
        elif "/" in name and not (ROOT / name).is_dir() and not name.startswith("git+"):
            raise WrongCommandError(f"there is no folder {name}")
    return set()


def pytest_(arguments: Sequence[str], sentence: bool) -> set[str]:
    markers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
    for before, word in zip(["", *arguments], arguments, strict=False):
        if before == "-m" and word not in {line.partition(":")[0] for line in markers}:
            raise WrongCommandError(f"pytest has no marker {word}")
        path = word.partition("::")[0]
        if "/" in path and not path.startswith("-") and not (ROOT / path).exists():
            raise WrongCommandError(f"there is no {path}")
    return {"a GPU"} if "gpu" in arguments and not sentence else set()


def anything(arguments: Sequence[str], sentence: bool) -> set[str]:
    """Of a program that has nothing to do with us."""
    return set()


PROGRAMS: Mapping[str, Callable[[Sequence[str], bool], set[str]]] = {
    **{"fbt": fbt, "python": python, "torchrun": torchrun, "srun": srun, "pip": pip, "pytest": pytest_},
    **dict.fromkeys(("git", "ruff", "mypy", "mkdocs", "apt"), anything),
}


# ---- what each command of ours needs ---------------------------------------------------------------------------------


def shown_config(name: str) -> str:
    """A config that is here, for one that a command has written or a reader will have."""
    if "my-parts" in name:
        return str(TEMPLATE / "my-parts" / "configs" / "my_parts.py")
    if MADE.match(name):
        return FLAGSHIP
    if name not in shipped_configs() and not (ROOT / name).is_file():
        raise WrongCommandError(f"there is no config {name}")
    return name if name in shipped_configs() else str(ROOT / name)


def a_run(args: argparse.Namespace) -> set[str]:
    config = shown_config(args.config)
    if "my-parts" in config:  # test_docs.py runs it, with its plugin
        return set()
    options = tuple(sorted((key, repr(value)) for key, value in (args.cfg_options or {}).items()))
    found = set(_of_a_run(config, args.pair, args.method, options))
    return found | ({"a GPU"} if str(args.device).startswith("cuda") else set())


@cache
def _of_a_run(config: str, pair: str | None, method: str | None, options: tuple[tuple[str, str], ...]) -> set[str]:
    """What a run needs, once its keys are checked; a teacher that is to be made before is taken for made."""
    values = {key: ast.literal_eval(value) for key, value in options}
    loaded = run_config(config, values, pair, method)
    if loaded.get("teacher_run") is not None:
        loaded.teacher_run.if_missing = "train"
    checkpoint = (loaded.model.get("teacher") or {}).get("checkpoint")
    if checkpoint and not str(checkpoint).startswith("embedded:") and loaded.get("teacher_run") is None:
        loaded.model.teacher.checkpoint = None  # an earlier command makes it
    check_cells({config: loaded})
    return needed(loaded)


def needed(config: Mapping[str, Any]) -> set[str]:
    """Data and weights of a run that are not in the package."""
    loaders = [config.get(f"{split}_dataloader") or {} for split in ("train", "val", "test")]
    types = {loader["dataset"]["type"] for loader in loaders if "dataset" in loader}
    models = [config["model"].get(role) or {} for role in ("student", "teacher")]
    downloads = {"a network"} if any(model.get("pretrained") for model in models) else set()
    return {DATA[kind] for kind in types & DATA.keys()} | downloads


def a_matrix(args: argparse.Namespace) -> set[str]:
    matrix = load_matrix(shown_config(args.config))
    cells = matrix.cells(args.pairs, args.methods)
    config = complete(matrix.cell(*cells[0]), args.cfg_options or {})
    return needed(config) | of_storage(args.storage)


def of_storage(url: str | None) -> set[str]:
    return {"a database"} if (url or "").startswith("postgresql") else set()


def a_choice(args: argparse.Namespace) -> set[str]:
    load_matrix(shown_config(args.config))
    if args.results and not (ROOT / args.results).exists():
        raise WrongCommandError(f"there is no {args.results}")
    return set()


def a_search(args: argparse.Namespace) -> set[str]:
    settings = pytest.importorskip("fbt_plugins.search.settings").Settings
    config = load_config(shown_config(args.config), args.cfg_options, args.pair, args.method)
    settings.of(config)
    return needed(config) | of_storage(args.storage)


def a_distillation(args: argparse.Namespace) -> set[str]:
    if args.method not in shipped_methods()[0]:
        raise WrongCommandError(f"there is no method {args.method}")
    needs = set()
    for role in ("teacher", "student"):
        if ".py:" in getattr(args, role):  # a file that the reader has
            continue
        name = named(role, getattr(args, role), None, False)
        if name.config["type"] == "timm":
            model, _, tag = name.config["name"].partition(".")
            if not timm.is_model(model) or (tag and name.config["name"] not in timm.list_pretrained(f"{model}.*")):
                raise WrongCommandError(f"timm has no {name.config['name']}")
    if args.pretrained and not args.check and not args.teacher_checkpoint:
        needs.add("a network")
    return needs


def an_inspection(args: argparse.Namespace) -> set[str]:
    for kind, name in ((args.type, args.name), (args.against_type, args.against)):
        if kind not in (None, "my_parts_net") and kind not in ARCHITECTURES:
            raise WrongCommandError(f"there is no architecture {kind}")
        if name and kind in (None, "timm") and not timm.is_model(name):
            raise WrongCommandError(f"timm has no {name}")
    if args.fusion not in FUSIONS:
        raise WrongCommandError(f"there is no fusion {args.fusion}")
    return {"a library"} if args.library else set()


def a_trained_run(args: argparse.Namespace) -> set[str]:
    if args.run.endswith(".py"):
        shown_config(args.run)
    elif not args.run.startswith(RUNS):
        raise WrongCommandError(f"{args.run} is no run that an earlier command leaves")
    return {"a GPU"} if str(getattr(args, "device", None)).startswith("cuda") else set()


def a_ranking(args: argparse.Namespace) -> set[str]:
    if not (ROOT / args.results).exists():
        raise WrongCommandError(f"there is no {args.results}")
    return set()


def nothing(args: argparse.Namespace) -> set[str]:
    return set()


COMMANDS: Mapping[str, Callable[[argparse.Namespace], set[str]]] = {
    **dict.fromkeys(("train", "benchmark"), a_run),
    **{"compare": a_matrix, "choose": a_choice},
    **dict.fromkeys(("test", "predict", "export"), a_trained_run),
    **dict.fromkeys(("plugins", "new-plugin", "configs"), nothing),
    **{"search": a_search, "distill": a_distillation, "inspect": an_inspection, "rank-splices": a_ranking},
}
