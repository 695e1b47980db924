"""Tests a run again: top-1, top-5, each class and a confusion matrix, or what its evaluator measures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..errors import FBTError, user_path
from .arguments import Parser

if TYPE_CHECKING:
    from ..engine.finished.evaluation import ClassFigures, Tested

SHOWN = 5
"""Classes and mistakes shown on the terminal."""

WHOLE_TABLE = 30
"""Classes up to which the confusion matrix is written as a table, too."""

EXAMPLES = """\
examples:
  fbt test work_dirs/fbt_convnext_resmlp
  fbt test work_dirs/fbt_convnext_resmlp --split val
  fbt test configs/fbt_convnext_resmlp.py                      # the run of this config in its usual folder
  fbt test work_dirs/fbt_convnext_resmlp --checkpoint work_dirs/fbt_convnext_resmlp/epoch_12.pth --out results/epoch_12

Writes test.json, test.md and, where matplotlib is installed, confusion.png.
"""


def parse() -> Parser:
    parser = Parser("fbt test", __doc__, EXAMPLES)
    parser.add_argument(
        "run", metavar="CONFIG_OR_RUN", help="folder of a run, or a config whose run is in its usual folder"
    )
    parser.add_argument("--split", choices=("test", "val"), help="of the config (default: test, where it has one)")
    parser.add_argument(
        "--checkpoint",
        type=user_path,
        metavar="FILE",
        help="weights: a checkpoint or a student.safetensors (default: the run's best)",
    )
    parser.add_argument("--out", type=user_path, metavar="FOLDER", help="for the results (default: RUN/SPLIT_results)")
    parser.add_shared("--pair", "--method", "--cfg-options", "--device")
    return parser


def main(argv: Sequence[str]) -> None:
    args = parse().parse_args(argv)
    if args.out is not None and args.out.exists():
        raise FBTError(f"--out {args.out}: it exists; remove it, or write to another folder")
    # Imported late: --help and usage errors must not wait for the engine.
    from ..console import console, relative, say
    from ..engine.finished.evaluation import find_split, find_trained, read_run, test_run
    from ..files import check_out, write_atomic

    config, folder = read_run(args.run, args.cfg_options, args.pair, args.method, args.device)
    split = find_split(config, args.split)
    weights = args.checkpoint or find_trained(folder)
    part = f"_{weights.stem}" if args.checkpoint else ""
    out = args.out or folder / f"{split}_results{part}"
    check_out(out)
    with console.status(f"testing {relative(weights)}"):
        tested = test_run(config, weights, split)
    written: dict[str, str | bytes] = {"test.json": as_json(tested), "test.md": as_markdown(tested)}
    if (picture := draw(tested)) is not None:
        written["confusion.png"] = picture
    try:
        for name, contents in written.items():
            write_atomic(out / name, contents)
    except OSError as error:
        raise FBTError(f"--out {out}: it cannot be written ({error.strerror})") from error
    from tabulate import tabulate

    say(f"weights  {relative(weights)}")
    kinds = f"of {len(tested.classes)} classes" if tested.classes else "without labels"
    say(f"data     {split}, {tested.images:,} images {kinds}")
    print(tabulate(*metrics_table(tested), disable_numparse=True, stralign="right"))
    if (figures := tested.per_class.get("student")) and len(figures) > 1:
        known = sorted((f for f in figures if f.top1 is not None), key=lambda f: f.top1 or 0.0)[:SHOWN]
        say(f"worst    {', '.join(f'{f.name} {f.top1:.1f} %' for f in known)}")
        mistakes = tested.mistakes("student", SHOWN)
        say(f"mistakes {', '.join(f'{true} said to be {said} ({n})' for true, said, n in mistakes) or 'none'}")
    say(f"written  {', '.join(relative(out / name) for name in written)}")


def metrics_table(tested: Tested) -> tuple[list[list[str]], list[str]]:
    """A row per model, a column per metric of the run's evaluator; and the columns' heads."""
    found: dict[str, dict[str, float]] = {name: {} for name in tested.names}
    for key, value in tested.metrics.items():
        owner = max((name for name in tested.names if key.startswith(f"{name}_")), key=len, default="")
        found.setdefault(owner, {})[key.removeprefix(f"{owner}_") if owner else key] = value
    columns = list(dict.fromkeys(metric for row in found.values() for metric in row))
    rows = [
        [name, tested.names.get(name, ""), *(f"{row[c]:.2f}" if c in row else "-" for c in columns)]
        for name, row in found.items()
    ]
    return rows, ["model", "", *(f"{column} %" for column in columns)]


def as_json(tested: Tested) -> str:
    """Everything, for programs."""
    contents: dict[str, Any] = {
        "split": tested.split,
        "images": tested.images,
        "weights": str(tested.weights),
        "models": dict(tested.names),
        "metrics": dict(tested.metrics),
        "classes": list(tested.classes),
        "per_class": {name: [asdict(f) for f in figures] for name, figures in tested.per_class.items()},
        "confusion": {name: {"rows": "true", "columns": "said", "counts": t} for name, t in tested.confusion.items()},
    }
    return json.dumps(contents, indent=1, ensure_ascii=False) + "\n"


def as_markdown(tested: Tested) -> str:
    """The same for people: metrics, each class of each model, and the student's mistakes."""
    from tabulate import tabulate

    def table(rows: Sequence[Sequence[object]], head: Sequence[str]) -> str:
        cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
        return tabulate(cells, [name.replace("|", "\\|") for name in head], tablefmt="github", disable_numparse=True)

    parts = [
        f"# Test of {tested.weights.name}",
        f"{tested.split}: {tested.images:,} images of {len(tested.classes)} classes.",
        table(*metrics_table(tested)),
    ]
    for name, figures in tested.per_class.items():
        head = ["class", "images", "top-1 %", "top-5 %", "precision %"]
        parts += [f"## Each class: {name}", table([_cells(f) for f in figures], head)]
    if "student" in tested.confusion:
        mistakes = tested.mistakes("student", 20)
        parts += ["## Most frequent mistakes of the student", table(mistakes, ["true", "said", "images"])]
        if len(tested.classes) <= WHOLE_TABLE:
            counts = tested.confusion["student"]
            rows = [[name, *row] for name, row in zip(tested.classes, counts, strict=True)]
            parts += [
                "## Confusion matrix of the student",
                "Rows: true; columns: said.",
                table(rows, ["", *tested.classes]),
            ]
    return "\n\n".join(parts) + "\n"


def _cells(figures: ClassFigures) -> list[str]:
    shares = (figures.top1, figures.top5, figures.precision)
    return [figures.name, f"{figures.images:,}", *("-" if share is None else f"{share:.2f}" for share in shares)]


def draw(tested: Tested) -> bytes | None:
    """The student's confusion matrix as PNG; None without a classifier or without matplotlib."""
    from importlib.util import find_spec

    if "student" not in tested.confusion or find_spec("matplotlib") is None:
        return None
    from ..report.pictures import confusion_matrix

    title = f"student ({tested.names['student']}), {tested.split}, {tested.images:,} images"
    return confusion_matrix(tested.confusion["student"], tested.classes, title)
