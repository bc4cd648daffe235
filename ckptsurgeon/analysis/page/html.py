"""One file that shows itself: data, style and program in one text that loads nothing and runs nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from html import escape as html_escape
from importlib import resources
from typing import Any

from ...util.text import escape

__all__ = ["PATTERNS", "PROGRAM", "page_html", "script_text"]

PATTERNS = (
    "patterns/patterns.js", "patterns/segments.js", "patterns/walk.js", "patterns/matching.js",
    "patterns/expressions.js",
)  # fmt: skip
"""What reads key patterns and matches keys by them, which needs nothing else of the program."""

PROGRAM = (
    "words.js", "blocks.js", *PATTERNS, "model.js", "search.js", "colours.js", "treemap.js", "map.js", "tree.js",
    "charts.js", "panel.js", "finder.js", "network.js", "receipt.js", "run.js", "about.js", "app.js",
)  # fmt: skip
"""In the order in which they build on each other."""


def page_html(data: Mapping[str, Any], title: str) -> str:
    """Return a page as HTML.

    Names in checkpoints are anyone's words. They are data here, in which no tag can begin, and are shown as text only;
    should one ever be more, the page's policy runs no program but its own and loads nothing (Content Security Policy
    Level 3).
    """
    style, program = _style(), _program()
    policy = (
        f"default-src 'none'; script-src '{_digest(program)}'; style-src '{_digest(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {
        "POLICY": policy, "TITLE": html_escape(escape(title)), "STYLE": style, "DATA": _embedded(data),
        "PROGRAM": program,
    }  # fmt: skip
    return "".join(parts.get(piece, piece) for piece in _skeleton())


def script_text(names: Iterable[str]) -> str:
    """Return files of the program, one after another."""
    return "\n".join(map(_text, names))


@cache
def _text(name: str) -> str:
    return resources.files(__package__).joinpath("browser", name).read_text("utf-8")


def _skeleton() -> list[str]:
    """Return the pieces of the page, with the names of what stands between them."""
    return _text("page.html").split("@@")


def _style() -> str:
    return _text("page.css")


def _program() -> str:
    """Return the program as one function, so that its names are its own."""
    return '"use strict";\n(() => {\n' + script_text(PROGRAM) + "\n})();\n"


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _embedded(data: Mapping[str, Any]) -> str:
    """Return data as JSON in which nothing can end the element that it stands in (HTML, 4.12.1.3)."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
