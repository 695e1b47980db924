"""What mkdocs does besides: README.md, CHANGELOG.md and the notebook become pages; links to no page become words."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
NOTEBOOK = DOCS / "tutorial.ipynb"
TOP = {"index.md": "README.md", "changelog.md": "CHANGELOG.md"}
LINK = re.compile(r"(!?\[[^\]]+)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Two files of the top level become pages, and so does the notebook."""
    for page, source in TOP.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for name, content in notebook():
        files.append(File.generated(config, name, content=content))
    return files


def notebook() -> Iterator[tuple[str, str | bytes]]:
    """The notebook as a page, and the pictures that its cells have left."""
    parts = []
    for number, cell in enumerate(json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]):
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"tutorial/{number}_{len(parts)}.png"
                yield name, base64.b64decode("".join(data["image/png"]))
                parts.append(f"![what the cell shows]({name})")
            elif words := "".join(output.get("text", data.get("text/plain", ()))):
                parts.append(f"```text\n{COLOUR.sub('', words).rstrip()}\n```")
    yield "tutorial.md", "\n\n".join(parts)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links that are right on GitHub are made right on the site.

    A link to a file that is no part of the site (a config, a result) keeps its words alone, where that file exists. A
    dead link stays, and a strict build refuses it.
    """
    here = page.file.src_uri
    folder = (ROOT / TOP[here] if here in TOP else DOCS / here).parent
    pages = {NOTEBOOK: DOCS / "tutorial.md", **{ROOT / source: DOCS / top for top, source in TOP.items()}}

    def of_site(link: re.Match[str]) -> str:
        target = (folder / link[2]).resolve()
        goal = pages.get(target, target)
        source = goal.relative_to(DOCS).as_posix() if goal.is_relative_to(DOCS) else ""
        if source and files.get_file_from_path(source):
            return f"{link[1]}]({os.path.relpath(goal, (DOCS / here).parent)}{link[3] or ''})"
        return link[1].lstrip("![") if target.exists() else link[0]

    return LINK.sub(of_site, markdown)
