"""What a run's student says about images: classes with probabilities, or embeddings, as CSV or NPY."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..errors import FBTError, user_path
from .arguments import Parser

SHOWN = 5
"""Files named on the terminal, of those that could not be used."""

EXAMPLES = """\
examples:
  fbt predict work_dirs/fbt_convnext_resmlp photo.jpg more_photos/
  fbt predict work_dirs/fbt_convnext_resmlp photos/ --out classes.csv --top 3
  # on a GPU
  fbt predict work_dirs/fbt_convnext_resmlp photos/ --embeddings --out features.npy --device cuda --workers 4

CSV: a line per image. NPY: a row per image, all probabilities or the embedding; NAME.npy.json beside it says which file
each row is, and which class each column. Images go through the transforms of the run's own test.
"""


def parse() -> Parser:
    parser = Parser("fbt predict", __doc__, EXAMPLES)
    parser.add_argument("run", help="folder of a finished run, or its student.safetensors")
    parser.add_argument("images", nargs="+", help="image files, and folders of them")
    parser.add_argument(
        "--out",
        type=user_path,
        metavar="FILE",
        default=Path("predictions.csv"),
        help="NAME.csv or NAME.npy (default: %(default)s)",
    )
    parser.add_argument(
        "--top", type=int, default=5, metavar="K", help="classes per image in a CSV file (default: %(default)s)"
    )
    parser.add_argument("--embeddings", action="store_true", help="features before the classifier, not classes")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images at once (default: %(default)s)")
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes that read images (default: none but this)"
    )
    parser.add_shared("--device")
    return parser


def main(argv: Sequence[str]) -> None:
    parser = parse()
    args = parser.parse_args(argv)
    for name, least in (("top", 1), ("batch_size", 1), ("workers", 0)):
        if getattr(args, name) < least:
            parser.error(f"--{name.replace('_', '-')} is {least} or more")
    if args.out.suffix not in (".csv", ".npy"):
        parser.error(f"--out {args.out}: write NAME.csv or NAME.npy")
    if args.out.exists():
        raise FBTError(f"--out {args.out}: it exists; remove it, or write to another file")
    # Imported late: --help and usage errors must not wait for the engine.
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ..console import console, relative, say
    from ..data.image_files import printable
    from ..engine.device import resolve_device
    from ..engine.finished.prediction import find_images, predict, write_predictions
    from ..engine.finished.student import open_student
    from ..files import check_out

    check_out(args.out)
    student = open_student(args.run)
    files, others = find_images(args.images)
    device = resolve_device(args.device, False)
    bar = Progress(
        TextColumn("predicting"),
        BarColumn(bar_width=18),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=len(files))
        found = predict(
            student, files, args.embeddings, args.batch_size, device, args.workers, lambda n: bar.advance(task, n)
        )
    written = write_predictions(found, args.out, args.top)
    say(f"student  {student.model.name} ({printable(relative(student.path))})")
    what = f"the {len(found.classes)} classes" if found.classes else f"{found.values.shape[1]} features"
    say(f"images   {len(found.files):,}, {what} of each")
    if found.classes:
        counted = Counter(found.values.argmax(1).tolist()).most_common(SHOWN)
        say(f"classes  {', '.join(f'{printable(found.classes[number])} {count:,}' for number, count in counted)}")
    if others:
        say(f"others   {others:,} files in the folders are no images by their names")
    if found.left_out:
        say(f"left out {len(found.left_out):,} files that cannot be used:")
        for path, reason in found.left_out[:SHOWN]:
            say(f"         {printable(path)}: {reason}")
        if (more := len(found.left_out) - SHOWN) > 0:
            say(f"         and {more:,} more")
    say(f"written  {', '.join(printable(relative(path)) for path in written)}")
