"""What mkdocs does besides: README.md and CHANGELOG.md become pages, links to files of no page become words."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TOP = {"index.md": "README.md", "changelog.md": "CHANGELOG.md"}
LINK = re.compile(r"(!?\[[^\]]+)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Two files of the top level become pages."""
    for page, source in TOP.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links that are right on GitHub are made right on the site.

    A link to a file that is no part of the site (a config, a result) keeps its words alone, where that file exists. A
    dead link stays, and a strict build refuses it.
    """
    here = page.file.src_uri
    folder = (ROOT / TOP[here] if here in TOP else DOCS / here).parent
    pages = {ROOT / source: DOCS / top for top, source in TOP.items()}

    def of_site(link: re.Match[str]) -> str:
        target = (folder / link[2]).resolve()
        goal = pages.get(target, target)
        source = goal.relative_to(DOCS).as_posix() if goal.is_relative_to(DOCS) else ""
        if source and files.get_file_from_path(source):
            return f"{link[1]}]({os.path.relpath(goal, (DOCS / here).parent)}{link[3] or ''})"
        return link[1].lstrip("![") if target.exists() else link[0]

    return LINK.sub(of_site, markdown)
