"""Distils on your own images in one line, with labels or without; leaves a student and the whole config."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..errors import typed
from .arguments import Parser

EXAMPLES = """\
examples:
  # the teacher's weights are downloaded
  fbt distill --data photos/ --teacher timm:vit_small_patch14_dinov2.lvd142m \\
    --student timm:mobilenetv4_conv_small --out out/
  fbt distill --data photos/ --teacher timm:convnext_tiny.fb_in1k --student my_net.py:make --out out/ --method rsd
  fbt distill ... --check                    # what would run, before anything is downloaded or trained
  fbt distill ... --epochs 1 --no-pretrained # a trial of all of it without a network
  fbt train out/config.py                    # the same as a config, to be changed

A model is timm:NAME, torchvision:NAME, hf:NAME (needs fbt-huggingface), FILE.py:FACTORY or package.module:FACTORY.
A file of yours is Python code that is run: name only what you trust. docs/guides/own-images.md has all of it in order.
"""


def parse() -> Parser:
    parser = Parser("fbt distill", __doc__, EXAMPLES)
    parser.add_argument("--data", required=True, metavar="FOLDER", help="images, nested as they come")
    parser.add_argument("--teacher", required=True, metavar="MODEL", help="the model that is learned from")
    parser.add_argument("--student", required=True, metavar="MODEL", help="the model that learns")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="what the run leaves: student, config, figures")
    parser.add_argument(
        "--method", default="fbt", help="how it learns: fbt, rsd, kd, ...; see docs/reference/methods.md (default: fbt)"
    )
    parser.add_argument(
        "--epochs", type=int, metavar="N", help="how long it trains (default: about 5,000 steps; 10 to 50 epochs)"
    )
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="images of a step (default: 64, or less where images are few)"
    )
    parser.add_argument(
        "--img-size", type=int, metavar="PIXELS", help="size of the images (default: what the student is made for)"
    )
    parser.add_argument("--lr", type=float, help="AdamW's rate (default: 1e-3 for a batch of 64)")
    parser.add_argument(
        "--labels",
        default="auto",
        help="where they are: auto, folders (each is a class), none, or a file like labels.csv (default: auto)",
    )
    parser.add_argument("--teacher-checkpoint", metavar="FILE", help="the teacher's weights")
    parser.add_argument(
        "--no-pretrained", dest="pretrained", action="store_false", help="random weights for the teacher: a trial"
    )
    parser.add_argument(
        "--pretrained-student", action="store_true", help="the student begins with its library's weights"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes that read images (default: cores at hand, to 8)"
    )
    parser.add_argument("--seed", type=int, help="seed of everything random (default: 0)")
    parser.add_shared("--device", "--amp")
    parser.add_argument("--check", action="store_true", help="only check all of it, and say what would run")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out; all else as it was")
    return parser


def main(argv: Sequence[str]) -> None:
    args = vars(parse().parse_args(argv))
    # Imported late: --help and usage errors must not wait for torch.
    from ..engine.one_line import distill

    distill(**args, command=command_line(argv))


def command_line(argv: Sequence[str]) -> str:
    """What makes this run again, from its start."""
    resume = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    resume.add_argument("--resume", action="store_true")
    return typed("fbt distill", *resume.parse_known_args(argv)[1])
