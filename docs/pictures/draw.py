"""Draws the pictures of the documents, with names and sizes from the flagship's own modules.

python docs/pictures/draw.py            # writes docs/pictures/*.svg again
python docs/pictures/draw.py --check    # exit code 1 where a picture is not what this script draws
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from mmengine.registry import MODELS

from fbt_plugins import Distiller, StageSpec, load_plugins
from fbt_plugins.config.loading import run_config

HERE = Path(__file__).parent
CONFIG = HERE.parents[1] / "configs" / "fbt_convnext_resmlp.py"
STYLE = """
  text { font: 15px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328; }
  .small { font-size: 12px; fill: #57606a; }
  .name { font-weight: 600; }
  .middle { text-anchor: middle; }
  .box { stroke-width: 1.6; rx: 6; }
  .T { fill: #ddeeff; stroke: #0969da; }
  .S { fill: #dff6e3; stroke: #1a7f37; }
  .F { fill: #fff0d5; stroke: #bc6c00; }
  .K { fill: #ffffff; stroke: #57606a; }
  .line { stroke: #57606a; stroke-width: 1.6; fill: none; }
  .edge { stroke: #cf222e; stroke-width: 2.2; fill: none; }
  .edgetext { fill: #cf222e; font-weight: 600; }
  .arrow { fill: #57606a; } .edgearrow { fill: #cf222e; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; } .small { fill: #9da7b1; }
    .T { fill: #10263d; stroke: #58a6ff; } .S { fill: #11301a; stroke: #3fb950; }
    .F { fill: #3a2a0c; stroke: #e3a341; } .K { fill: #161b22; stroke: #9da7b1; }
    .line { stroke: #9da7b1; } .arrow { fill: #9da7b1; }
    .edge { stroke: #ff7b72; } .edgetext { fill: #ff7b72; } .edgearrow { fill: #ff7b72; }
  }
"""
WIDE, HIGH, GAP = 104, 52, 22


@dataclass
class Picture:
    """An SVG that grows; lengths are pixels.

    Attributes:
        width, height: of the whole.
        title: what screen readers say.
        parts: what was drawn.
    """

    width: int
    height: int
    title: str
    parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, words: str, kind: str = "") -> None:
        self.parts.append(f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(words)}</text>')

    def box(self, x: float, y: float, kind: str, name: str, below: str = "", width: float = WIDE) -> None:
        """A part of a model: its name, and what it gives."""
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{HIGH}" class="box {kind}"/>')
        middle = x + width / 2
        self.text(middle, y + (22 if below else 31), name, "middle name")
        if below:
            self.text(middle, y + 40, below, "middle small")

    def line(self, *points: tuple[float, float], kind: str = "line", head: str = "arrow") -> None:
        """A path through points, with an arrow's head at its end where one is given."""
        path = " L".join(f"{x:g} {y:g}" for x, y in points)
        end = f' marker-end="url(#{head})"' if head else ""
        self.parts.append(f'<path d="M{path}" class="{kind}"{end}/>')

    def svg(self) -> str:
        heads = "".join(
            f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            f'<path d="M0 0 L8 4 L0 8 z" class="{name}"/></marker>'
            for name in ("arrow", "edgearrow")
        )
        box = f"0 0 {self.width} {self.height}"
        size = f'width="{self.width}" height="{self.height}" viewBox="{box}"'
        body = "\n".join(f"  {part}" for part in self.parts)
        title = escape(self.title, quote=True)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{title}">\n'
            f"  <title>{escape(self.title)}</title>\n  <style>{STYLE}  </style>\n"
            f"  <defs>{heads}</defs>\n{body}\n</svg>\n"
        )


def size(spec: StageSpec) -> str:
    """ "128 x 4x4": channels, and the grid of positions."""
    grid = spec.grid
    return f"{spec.channels} x {grid[0]}x{grid[1]}" if grid else str(spec.channels)


def row(picture: Picture, x: float, y: float, owner: str, specs: list[StageSpec], first: int, last: int) -> float:
    """Stages of one model in a row, joined by arrows; returns where the next box begins."""
    for number in range(first, last + 1):
        picture.box(x, y, owner, f"{owner}{number}", size(specs[number - 1]))
        picture.line((x + WIDE, y + HIGH / 2), (x + WIDE + GAP, y + HIGH / 2))
        x += WIDE + GAP
    return x


def method(model: Distiller) -> Picture:
    """Teacher, fusion model and student, and the three edges between what they know."""
    fusion = model.fusions["fusion"]
    splice = fusion.splices[0]
    specs = {"T": model.specs("teacher"), "S": model.specs("student")}
    picture = Picture(1070, 470, "FBT: a fusion model between teacher and student, and three edges")
    x0, know = 120, 850
    heads: dict[str, float] = {}
    rows = (("T", 40), ("S", 360))
    for owner, y in rows:
        role = "teacher" if owner == "T" else "student"
        picture.text(16, y + 22, role.capitalize(), "name")
        picture.text(16, y + 40, model.models[role].family, "small")
        x = row(picture, x0, y, owner, specs[owner], 1, len(specs[owner]))
        picture.box(x, y, owner, f"{owner} head", width=86)
        picture.line((x + 86, y + HIGH / 2), (know, y + HIGH / 2))
        heads[owner] = y
    y = 200
    picture.text(16, y + 22, "Fusion", "name")
    picture.text(16, y + 40, str(splice), "small")
    x = x0
    for number, piece in enumerate(splice.pieces):
        if number:
            picture.box(x, y, "F", "L2G", "new", width=86)
            picture.line((x + 86, y + HIGH / 2), (x + 86 + GAP, y + HIGH / 2))
            x += 86 + GAP
        x = row(picture, x, y, piece.owner, specs[piece.owner], piece.first, piece.last)
    last = splice.pieces[-1].owner
    picture.box(x, y, last, f"{last} head", width=86)
    picture.line((x + 86, y + HIGH / 2), (know, y + HIGH / 2))
    for name, at in (("T", heads["T"]), ("F", y), ("S", heads["S"])):
        picture.box(know, at, "K", f"f, p of {name}", "features, logits", width=126)
    middle, right = know + 63, know + 126
    picture.line((middle, heads["T"] + HIGH), (middle, y), kind="edge", head="edgearrow")
    picture.line((middle, y + HIGH), (middle, heads["S"]), kind="edge", head="edgearrow")
    ends = (
        (right, heads["T"] + 26),
        (right + 40, heads["T"] + 26),
        (right + 40, heads["S"] + 26),
        (right, heads["S"] + 26),
    )
    picture.line(*ends, kind="edge", head="edgearrow")
    picture.text(middle + 10, (heads["T"] + HIGH + y) / 2 + 5, "T→F", "edgetext")
    picture.text(middle + 10, (y + HIGH + heads["S"]) / 2 + 5, "F→S", "edgetext")
    picture.text(right + 46, y + 31, "T→S", "edgetext")
    picture.text(
        x0, 450, "Each edge: InfoNCE on features f, OFA on logits p. The fusion model owns L2G alone.", "small"
    )
    return picture


def stages(model: Distiller) -> Picture:
    """A model as a row of stages and a head."""
    specs = model.specs("teacher")
    picture = Picture(760, 150, "A model is a row of stages and a head")
    picture.text(16, 28, f"Any model is a row of stages and a head. Here: {model.models['teacher'].name}.", "")
    picture.text(16, 83, "images", "small")
    picture.line((60, 78), (80, 78))
    x = row(picture, 80, 52, "T", specs, 1, len(specs))
    picture.box(x, 52, "T", "head", "pool, norm, layer", width=126)
    picture.text(80, 130, "Below a stage's name: the channels that it gives, and its grid of positions.", "small")
    return picture


def splice(model: Distiller) -> Picture:
    """How a splice is read."""
    found = model.fusions["fusion"].splices[0]
    first, second = found.pieces
    picture = Picture(760, 210, f"The splice {found}, letter by letter")
    picture.text(16, 30, f"{first}+{second}", "name")
    names = {"T": "teacher", "S": "student"}
    lines = (
        f"{first}: stages {first.first} to {first.last} of the {names[first.owner]}, which has computed them anyway",
        "+: a junction, where the fusion strategy builds a projector",
        f"{second}: stage {second.last} of the {names[second.owner]}, then its head",
    )
    for number, words in enumerate(lines):
        picture.text(110, 30 + 24 * number, words, "")
    specs = {"T": model.specs("teacher"), "S": model.specs("student")}
    x = row(picture, 16, 120, first.owner, specs[first.owner], first.first, first.last)
    picture.box(x, 120, "F", "junction", width=86)
    picture.line((x + 86, 146), (x + 86 + GAP, 146))
    x = row(picture, x + 86 + GAP, 120, second.owner, specs[second.owner], second.first, second.last)
    picture.box(x, 120, second.owner, "head", width=86)
    return picture


def junction(model: Distiller) -> Picture:
    """What the paper's junction does."""
    found = model.fusions["fusion"].splices[0].junctions[0]
    specs = {"T": model.specs("teacher"), "S": model.specs("student")}
    arrives = specs[found.giver][found.last - 1]
    wanted = specs[found.taker][found.first - 2] if found.first > 1 else specs[found.taker][0]
    picture = Picture(800, 170, "A junction: what arrives, what it becomes")
    picture.text(16, 28, "A junction turns what one model's stage gives into what another's stage expects.", "")
    picture.box(16, 60, found.giver, f"{found.giver}{found.last}", size(arrives))
    picture.line((16 + WIDE, 86), (150, 86))
    picture.box(150, 60, "F", "patch embedding", f"to {size(wanted)}", width=170)
    picture.line((320, 86), (350, 86))
    picture.box(350, 60, "F", "Swin block", "local to global", width=150)
    picture.line((500, 86), (530, 86))
    picture.box(530, 60, found.taker, f"{found.taker}{found.first}", f"expects {size(wanted)}", width=150)
    picture.text(150, 142, "L2G, the paper's junction: the only new parameters of the fusion model", "small")
    return picture


def edge(model: Distiller) -> Picture:
    """What happens along an edge."""
    picture = Picture(800, 190, "An edge: a giver, a receiver, and losses between what they know")
    picture.text(16, 28, "Along an edge the giver is constant, and the receiver learns.", "")
    picture.box(16, 74, "T", "giver", "teacher, or fusion", width=150)
    picture.box(634, 74, "S", "receiver", "student, or fusion", width=150)
    picture.line((166, 88), (634, 88), kind="edge", head="edgearrow")
    picture.line((166, 112), (634, 112), kind="edge", head="edgearrow")
    types = {
        slot: model.edges["teacher_to_student"].types[f"teacher_to_student/{slot}"] for slot in ("feature", "logit")
    }
    picture.text(400, 80, f"features f: feature_loss ({types['feature']})", "middle")
    picture.text(400, 132, f"logits p: logit_loss ({types['logit']})", "middle")
    picture.text(16, 172, "teacher_to_student also takes a stage_loss, between outputs of stages.", "small")
    return picture


PICTURES = (method, stages, splice, junction, edge)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a picture differs")
    args = parser.parse_args()
    load_plugins()
    model = MODELS.build(run_config(CONFIG).model)
    old = []
    for draw in PICTURES:
        file, text = HERE / f"{draw.__name__}.svg", draw(model).svg()
        if not file.is_file() or file.read_text() != text:
            old.append(file.name)
            if not args.check:
                file.write_text(text)
    if args.check and old:
        print(f"python docs/pictures/draw.py draws others than are here: {', '.join(old)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
