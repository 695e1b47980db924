"""A comparison as Markdown, as JSON and as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from . import cells as words
from . import figures
from .comparison import Comparison, Pair

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 84rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e2e2e2; }
th { border-bottom: 2px solid #888; vertical-align: bottom; white-space: normal; min-width: 4.5rem; }
th.text, td.text { text-align: left; } td.text + td.text { white-space: normal; min-width: 15rem; }
td.clear { font-weight: 600; } td.none { color: #767676; }
tbody tr:hover { background: #f4f6f8; }
.warning { border-left: 4px solid #c2410c; padding: .3rem .8rem; background: #fff7ed; overflow-wrap: anywhere; }
figure { margin: 1.5rem 0; } figcaption { font-size: .87rem; color: #444; max-width: 60rem; }
.row { display: flex; flex-wrap: wrap; column-gap: 2.5rem; } .row figure { max-width: 100%; min-width: 15rem; }
.row figcaption { contain: inline-size; }
img { display: block; margin-bottom: .3rem; }
@media (min-width: 60rem) { img { max-width: 100%; height: auto; } }
p, dd { max-width: 60rem; } dt { font-weight: 600; } dd { margin: 0 0 .4rem; } code, dd { overflow-wrap: anywhere; }
nav a { color: #0b5a99; margin-right: 1rem; white-space: nowrap; }
"""


def write_report(folder: str | Path, comparison: Comparison, command: str) -> list[Path]:
    """Writes ``report.md``, ``report.json`` and ``report.html``.

    Args:
        folder: made if it is not there.
        comparison: what to show.
        command: that wrote it; it may have asked for a part of the runs that are shown.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "report.md": markdown(comparison, command),
        "report.json": json.dumps(comparison.as_json() | {"command": command}, indent=1, ensure_ascii=False) + "\n",
        "report.html": page(comparison, command),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


def markdown(comparison: Comparison, command: str) -> str:
    """The tables and what they mean, as Markdown."""
    lines = [f"# {comparison.name}", ""]
    lines += [f"**{warning}**\n" for warning in words.warnings(comparison)]
    for pair in comparison.pairs:
        rows = [words.cells(comparison, row) for row in pair.rows]
        lines += [f"## {words.title(pair)}", "", _pipes(words.columns(comparison), rows, texts=2), ""]
        lines += [words.elsewhere(pair), ""] if pair.elsewhere else []
        for other, same in comparison.otherwise(pair):
            rows = [words.cells(other, row) for row in same.rows]
            lines += [f"### {words.otherwise(other, same)}", "", _pipes(words.columns(other), rows, texts=2), ""]
    lines += ["## All pairs", "", _pipes(*words.gains(comparison)), ""]
    for found in comparison.teachers:
        lines += [f"## Teachers of {found.student}", "", words.TEACHERS, "", _pipes(*words.teachers(found)), ""]
    lines += ["## How to read this", ""]
    lines += [f"{paragraph}\n" for paragraph in words.how_to_read(comparison)]
    lines += [f"- written by: `{command}`"]
    lines += [f"- {name}: {value}" for name, value in words.provenance(comparison)]
    lines += [f"- published figures, {source}" for source in words.sources(comparison)]
    return "\n".join(lines) + "\n"


def _pipes(head: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    align = ["left" if column < texts else "right" for column in range(len(head))]
    return tabulate(rows, headers=list(head), tablefmt="pipe", disable_numparse=True, colalign=align)


def page(comparison: Comparison, command: str) -> str:
    """One HTML page with its pictures inside; it asks for nothing from anywhere."""
    name = html.escape(comparison.name)
    parts = [f"<h1>{name}</h1>"]
    parts += [f'<p class="warning">{html.escape(warning)}</p>' for warning in words.warnings(comparison)]
    if len(comparison.pairs) > 1:
        names = [html.escape(pair.name) for pair in comparison.pairs]
        parts += ["<nav>", *(f'<a href="#{name}">{name.replace("_", " → ", 1)}</a>' for name in names), "</nav>"]
        parts += ["<h2>All pairs: mean differences</h2>", _table(*words.gains(comparison))]
    for pair in comparison.pairs:
        parts += [f'<h2 id="{html.escape(pair.name)}">{html.escape(words.title(pair))}</h2>']
        parts += [_pair_table(comparison, pair)]
        parts += [f"<p>{html.escape(words.elsewhere(pair))}</p>"] if pair.elsewhere else []
        for other, same in comparison.otherwise(pair):
            parts += [f"<h3>{html.escape(words.otherwise(other, same))}</h3>", _pair_table(other, same)]
        parts += [_picture(figures.differences(pair, comparison.controls), words.DIFFERENCES)]
        parts += [_picture(figures.curves(pair), words.curves(comparison))]
        maps = [_picture(figures.similarities(pair, of), words.similarity(pair, of)) for of in ("TS", "TF", "FS")]
        parts += ['<div class="row">', *maps, "</div>"]
    for found in comparison.teachers:
        parts += [f"<h2>Teachers of {html.escape(found.student)}</h2>", f"<p>{html.escape(words.TEACHERS)}</p>"]
        parts += [_table(*words.teachers(found))]
    parts += ["<h2>How to read this</h2>"]
    parts += [f"<p>{html.escape(paragraph)}</p>" for paragraph in words.how_to_read(comparison)]
    parts += ["<p>In bold: intervals that leave out 0.</p>", "<h2>Where it comes from</h2>", "<dl>"]
    parts += [f"<dt>written by</dt><dd><code>{html.escape(command)}</code></dd>"]
    about = [*words.provenance(comparison), *(("published figures", source) for source in words.sources(comparison))]
    parts += [f"<dt>{html.escape(term)}</dt><dd>{html.escape(value)}</dd>" for term, value in about]
    body = "\n".join([*parts, "</dl>"])
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{name}</title>'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n'
    )


def _pair_table(comparison: Comparison, pair: Pair) -> str:
    clear = [
        {
            words.BEFORE + i
            for i, control in enumerate(comparison.controls)
            if (v := row.differences.get(control)) is not None and v.is_clear
        }
        for row in pair.rows
    ]
    rows = [words.cells(comparison, row) for row in pair.rows]
    return _table(words.columns(comparison), rows, clear, texts=(0, 1))


def _table(
    head: Sequence[str], rows: Sequence[Sequence[str]], clear: Sequence[set[int]] = (), texts: Sequence[int] = (0,)
) -> str:
    def cell(tag: str, column: int, text: str, row: int = -1) -> str:
        bold = 0 <= row < len(clear) and column in clear[row]
        kinds = {"text": column in texts, "clear": bold, "none": text == words.NONE}
        names = " ".join(kind for kind, applies in kinds.items() if applies)
        kind = f' class="{names}"' if names else ""
        return f"<{tag}{kind}>{html.escape(text)}</{tag}>"

    lines = ["<tr>" + "".join(cell("th", i, text) for i, text in enumerate(head)) + "</tr>"]
    lines += [
        "<tr>" + "".join(cell("td", i, text, n) for i, text in enumerate(row)) + "</tr>" for n, row in enumerate(rows)
    ]
    return "\n".join(['<div class="wide"><table>', *lines, "</table></div>"])


def _picture(svg: str | None, text: str) -> str:
    """As an image of its own: names inside one SVG then mean nothing to the next."""
    if svg is None:
        return ""
    data, caption = base64.b64encode(svg.encode()).decode(), html.escape(text)
    image = f'<img alt="{caption}" src="data:image/svg+xml;base64,{data}">'
    return f'<figure><div class="wide">{image}</div><figcaption>{caption}</figcaption></figure>'
