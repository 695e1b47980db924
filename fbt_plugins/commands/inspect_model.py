"""Shows how a model is cut into stages, proves it, and lists the splices that fit with another model."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

from ..errors import typed, user_path
from .arguments import CfgOptions, Parser, Workers

EXAMPLES = """\
examples:
  fbt inspect convnext_tiny
  fbt inspect resnet18 --img-size 32 --against resmlp_s4_patch4_32
  fbt inspect vit_b_16 --type torchvision --json vit.json
  fbt inspect --type module --options path=package.module:factory "stages=[layer1,layer2,layer3]"
  fbt inspect --type my_parts_net --against-type my_parts_net --against-options width=16
  fbt inspect --all --workers 2 --markdown docs/reference/coverage.md
  fbt inspect --all --library vit_pytorch geffnet           # libraries that are installed
"""


def parse() -> Parser:
    parser = Parser("fbt inspect", __doc__, EXAMPLES)
    parser.add_argument("name", nargs="?", help="the model's name")
    parser.add_argument("--type", help="architecture that builds it (default: timm; with --all: every one)")
    parser.add_argument("--img-size", type=int, metavar="N", help="pixels (default: the model's own)")
    parser.add_argument(
        "--num-classes", type=int, default=1000, metavar="N", help="logits (default: 1000); 0 is an encoder"
    )
    parser.add_argument(
        "--options", nargs="+", action=CfgOptions, metavar="KEY=VALUE", help="further arguments, as a config has them"
    )
    parser.add_argument("--no-proof", action="store_true", help="don't prove the cut, which takes some seconds")
    parser.add_argument("--against", nargs="?", metavar="OTHER", help="list all splices with model OTHER as teacher")
    parser.add_argument("--against-type", help="architecture that builds OTHER, which may need no name (default: timm)")
    parser.add_argument("--against-options", nargs="+", action=CfgOptions, metavar="KEY=VALUE", help="as --options")
    parser.add_argument(
        "--fusion", default="L2GFusion", help="strategy that joins the two, with --against (default: L2GFusion)"
    )
    parser.add_argument("--json", type=user_path, metavar="FILE", help="write what is shown to a file as well")
    parser.add_argument("--all", action="store_true", help="cut every model that the architectures can name")
    parser.add_argument("--library", nargs="+", metavar="NAME", help="only networks of these libraries (--all)")
    parser.add_argument(
        "--workers",
        type=int,
        action=Workers,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes at once, with --all (default: one for each processor)",
    )
    parser.add_argument(
        "--state",
        type=user_path,
        default=Path("work_dirs/coverage.jsonl"),
        metavar="FILE",
        help="what is done already (--all)",
    )
    parser.add_argument(
        "--prove-up-to", type=float, default=150.0, metavar="M", help="million parameters of a proved model (--all)"
    )
    parser.add_argument("--markdown", type=user_path, metavar="FILE", help="write the report to a file (--all)")
    return parser


def main(argv: Sequence[str]) -> None:
    parser = parse()
    args = parser.parse_args(argv)
    if args.all if args.name else not (args.all or args.type):
        parser.error("give a model's name, a --type that needs none, or --all")
    # Imported late: --help and usage errors must not wait for torch.
    from .. import load_plugins
    from ..files import check_file

    for option in ("json", "markdown", *(["state"] if args.all else [])):
        if (file := getattr(args, option)) is not None:
            check_file(file, f"--{option}")
    load_plugins()
    if args.all:
        report(args, argv)
    else:
        inspect(args)


def inspect(args: Any) -> None:
    """One model, and its splices with another."""
    from tabulate import tabulate

    from .. import FUSIONS
    from ..analysis.inspection import splice_rows, stage_rows
    from ..files import write_atomic

    model, size = build(args.type or "timm", args.name, args.num_classes, args.img_size, args.options or {})
    proof = None if args.no_proof else model.verify(size)
    rows = stage_rows(model, size)
    print(f"{model.name}: {model.family}, {model.way} cut, images of {size[0]}x{size[1]} pixels")
    table = [
        (r["part"], r["output"], r["family"], r["ends"], thousands(r["parameters"]), millions(r["macs"])) for r in rows
    ]
    columns = ("", "output", "family", "last weights", "parameters", "M MACs")
    print(tabulate(table, columns, colalign=("left",) * 4 + ("right",) * 2))
    if proof is not None:
        batches = " and ".join(map(str, proof.batch_sizes))
        print(
            f"proof: stages and head are the model bit for bit: outputs in eval (batches of {batches}) and train mode, "
            f"{proof.gradients} gradients, {proof.buffers} buffers; each of {proof.parameters} parameters in one part"
        )
        also = [f"{proof.steps} steps of training", f"what is kept of {proof.stages} stages"]
        also += ["features are what the last linear layer is given"] if proof.features else []
        also += [f"tokens of {proof.tokens} stages stand where they are said to"] if proof.tokens else []
        print(f"also: {', '.join(also)}")
    found = {"model": model.name, "family": model.family, "way": model.way, "image_size": size, "parts": rows}
    found["proof"] = proof and vars(proof)
    if args.against or args.against_type:
        wanted = (args.against_type or "timm", args.against)
        teacher, other = build(*wanted, args.num_classes, args.img_size, args.against_options or {})
        if teacher.image_size != size and other != size:
            teacher.input_size = other
        splices = splice_rows(model, teacher, FUSIONS.build({"type": args.fusion}), size)
        print(f"\nsplices with {model.name} as student and {teacher.name} as teacher ({args.fusion})")
        shown = [
            (r["splice"], "auto" if r["auto"] else "", thousands(r["junctions"]), millions(r["macs"]), r["refused"])
            for r in splices
        ]
        head = ("splice", "", "new parameters", "M MACs added", "refused")
        print(tabulate(shown, head, colalign=("left", "left", "right", "right")))
        found["splices"] = splices
    if args.json:
        write_atomic(args.json, json.dumps(found, indent=2) + "\n")


def build(type_: str, name: str | None, classes: int, pixels: int | None, options: dict[str, Any]) -> Any:
    """A model and the image size to look at it with: made for that size where it has such an argument."""
    from .. import ARCHITECTURES, ConfigError

    config = {"type": type_, "num_classes": classes, **({"name": name} if name else {}), **options}
    for argument in ("img_size", "image_size") if pixels else ():
        try:
            model = ARCHITECTURES.build({**config, argument: pixels})
            return model, (pixels, pixels)
        except ConfigError:
            continue
    model = ARCHITECTURES.build(config)
    return model, (pixels, pixels) if pixels else model.image_size


def report(args: Any, argv: Sequence[str]) -> None:
    """Every model that the architectures can name."""
    from rich.progress import Progress

    from ..analysis.coverage import catalogues, cover, markdown, names_of
    from ..errors import FBTError, nearest
    from ..files import write_atomic

    args.state.parent.mkdir(parents=True, exist_ok=True)
    types = [args.type] if args.type else None
    if not catalogues(types):
        known = catalogues()
        raise FBTError(f"--type {args.type}: no architecture that can name its models{nearest(args.type, known)}")
    models = names_of(types, args.library)
    if not models:
        if not args.library:
            raise FBTError(f"--type {args.type}: its networks are those of libraries; name some with --library")
        raise FBTError(f"--library {' '.join(args.library)}: no network of these is known here, or installed")
    rows = []
    with Progress() as bar:
        task = bar.add_task("models")
        for done, total, row in cover(models, args.state, args.workers, args.prove_up_to):
            rows.append(row)
            bar.update(task, completed=done, total=total, description=f"{row['step']:5} {row['name'][:40]:40}")
    text = markdown(rows)
    print(text)
    if args.markdown:
        command = typed("fbt inspect", *argv)
        packages = packages_distributions()
        used = [packages[name][0] for name in args.library or ("timm", "torchvision")]
        versions = ", ".join(f"{name} {version(name)}" for name in (*used, "torch"))
        head = HEAD.format(command=command, versions=versions, largest=args.prove_up_to)
        write_atomic(args.markdown, head + text)
    if args.json:
        write_atomic(args.json, json.dumps(rows, indent=1) + "\n")


HEAD = """\
# Coverage

Made by `{command}`
with {versions}.

Every model is cut, where its library allows it without weights. The smallest of each kind (module and class of the
network) that has at most {largest:.0f} million parameters is then proved with perturbed weights at its own image size:
outputs in eval mode for batches of 2 and 3, outputs, gradients and buffers in two steps of training, bit for bit, and
each parameter and buffer in exactly one part. Kinds that end in "Encoder" have no classifier.

"""


def thousands(count: int | None) -> str:
    return "" if count is None else f"{count:,}"


def millions(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:,.1f}"
