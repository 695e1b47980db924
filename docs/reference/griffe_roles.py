"""A griffe extension for the API page: docstrings as Markdown, and one name a line where two share a text.

mkdocs.yml names it among the options of mkdocstrings' python handler: ``extensions: [docs/reference/griffe_roles.py]``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).resolve().parent))

from docstrings import one_a_name, plain


class Roles(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = plain(one_a_name(obj.docstring.value))
