"""Writes a run's student as safetensors, ONNX, pt2 or TorchScript, checked against the run's outputs."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import user_path
from .arguments import Parser, extras

FORMATS = ("safetensors", "onnx", "pt2", "torchscript")

EXAMPLES = """\
examples:
  fbt export work_dirs/fbt_convnext_resmlp --format onnx
  fbt export work_dirs/fbt_convnext_resmlp --format onnx --fp16 --out student.onnx
  fbt export work_dirs/fbt_convnext_resmlp --format safetensors --features     # without the classifier
  fbt export work_dirs/fbt_convnext_resmlp --format pt2

RUN/export/student.onnx then takes normalised images (any number of them); student.onnx.json beside it says how they
are made: transforms, size, mean, std, classes. onnx needs the extra: pip install 'fbt-plugins[export]'
"""


def parse() -> Parser:
    parser = Parser("fbt export", __doc__, EXAMPLES)
    parser.add_argument("run", help="folder of a finished run, or its student.safetensors")
    parser.add_argument("--format", choices=FORMATS, default="safetensors", help="of the file (default: %(default)s)")
    parser.add_argument("--out", type=user_path, metavar="FILE", help="the file (default: RUN/export/student.SUFFIX)")
    parser.add_argument(
        "--fp16", action="store_true", help="weights in half precision; inputs and outputs stay float32"
    )
    parser.add_argument("--features", action="store_true", help="what the student knows before its classifier")
    return parser


def main(argv: Sequence[str]) -> None:
    args = parse().parse_args(argv)
    # Imported late: --help and usage errors must not wait for the engine.
    from ..console import relative, say
    from ..engine.finished.exporting import export_student

    if args.format == "onnx":
        with extras("export"):
            import onnx  # noqa: F401
            import onnxscript  # noqa: F401
    done = export_student(args.run, args.format, args.out, args.fp16, args.features)
    about = done.about
    shape = " x ".join(map(str, about["input"]["shape"]))
    say(f"written  {relative(done.path)} ({done.path.stat().st_size / 1e6:.1f} MB), {about['precision']}")
    say(f"beside   {', '.join(map(relative, done.beside))}")
    say(f"input    {about['input']['name']}: {shape}, normalised; output {about['output']['name']}")
    for by, off in about["checked"].items():
        say(f"checked  by {by}: {off:.1e} of the largest output from the run's (allowed: {about['tolerance']:g})")
    if not about["checked"]:
        say("checked  no: onnxruntime is not installed (pip install 'fbt-plugins[export]')")
