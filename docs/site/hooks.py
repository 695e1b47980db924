"""What mkdocs does besides: README.md and CHANGELOG.md become pages, and links that leave the site become plain words."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TOP = {"index.md": "README.md", "changelog.md": "CHANGELOG.md"}
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#)([^)#\s]+)[^)]*\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Two files of the top level become pages, whose links begin in docs/."""
    for page, source in TOP.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        text = (
            text.replace("](docs/", "](")
            .replace("](README.md", "](index.md")
            .replace("](CHANGELOG.md", "](changelog.md")
        )
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A link to a file that is no part of the site (a config, a result) keeps its words alone.

    Only where that file exists: a dead link stays, and a strict build refuses it.
    """
    folder = (DOCS / page.file.src_uri).parent

    def words_or_link(link: re.Match[str]) -> str:
        target = (folder / link[2]).resolve()
        source = target.relative_to(DOCS).as_posix() if target.is_relative_to(DOCS) else ""
        of_site = source and files.get_file_from_path(source)
        return link[1] if not of_site and (target.exists() or (ROOT / link[2]).exists()) else link[0]

    return LINK.sub(words_or_link, markdown)
