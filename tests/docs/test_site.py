"""Links lead somewhere, and the pages make a site that needs nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(p for p in DOCS.rglob("*.md") if p.name != "report.md")]
SOURCES = [
    *(path for folder in ("fbt_plugins", "plugins", "configs", "tools") for path in (ROOT / folder).rglob("*.py")),
    *(ROOT / "plugins").rglob("*.md"),
]


def anchors(page: Path) -> set[str]:
    """What GitHub and the site make of the page's headings, and the site of objects that it documents."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    objects = re.findall(r"^::: (\S+)", text, re.MULTILINE)
    return {*objects, *(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text(encoding="utf-8")):
        target = page.parent / link if link else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}#{anchor}"


def test_pages_that_the_code_names_are_there() -> None:
    """In messages, help texts and comments."""
    named = {page for path in SOURCES for page in re.findall(r"docs/[\w/-]+\.md", path.read_text(encoding="utf-8"))}
    assert len(named) > 5 and not [page for page in named if not (ROOT / page).exists()]


def test_debians_images_are_where_its_package_puts_them() -> None:
    for path in [*PAGES, *SOURCES]:
        folders = re.findall(r"/usr/share/[\w/-]*fashion-mnist", path.read_text(encoding="utf-8"))
        assert set(folders) <= {"/usr/share/datasets/fashion-mnist"}, path


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_the_site_is_built_of_the_same_pages_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("material", reason='mkdocs-material is not installed: pip install -e ".[docs]"')
    command = [sys.executable, "-m", "mkdocs", "build", "-f", ".mkdocs.yml", "--strict", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    loads = re.compile(
        r'<(?:script|img|iframe|link rel="(?:stylesheet|icon|preconnect)")[^>]*(?:src|href)="(?:https?:)?//'
    )
    assert not [page.name for page in tmp_path.rglob("*.html") if loads.search(page.read_text(encoding="utf-8"))]
