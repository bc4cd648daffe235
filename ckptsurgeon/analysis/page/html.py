"""Makes the HTML of a page: one file with the data, the style sheet and the JavaScript, which loads no other file."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from html import escape as html_escape
from importlib import resources
from typing import Any

from ...util.text import escape

__all__ = [
    "LISTED",
    "LONGEST",
    "PATTERNS",
    "PROGRAM",
    "brief",
    "integer",
    "listed",
    "mapping",
    "number",
    "numbers",
    "page_html",
    "script_text",
    "text",
]

# Functions that convert untrusted data to strings, numbers and lists of bounded length.

LISTED = 500
"""The largest number of entries of a list that are shown."""
LONGEST = 2000
"""The largest number of characters of a string that are shown; a tokeniser in metadata can have millions."""
FIGURES = 50
"""At most this many numbers of one mapping, such as the metrics of an evaluation, are shown."""


def brief(value: str, longest: int = LONGEST) -> str:
    """Return a string, shortened to about ``longest`` characters if it is longer."""
    return value if len(value) <= longest else f"{value[:longest]}… ({len(value)} characters)"


def text(value: Any) -> str:
    """Return ``value`` if it is a string, shortened if it is long; '' for anything else."""
    return brief(value) if isinstance(value, str) else ""


def integer(value: Any) -> int | None:
    """Return ``value`` if it is an integer that JavaScript can hold exactly, None for anything else."""
    return value if type(value) is int and abs(value) < 1 << 53 else None


def number(value: Any) -> float | None:
    """Return ``value`` if it is an integer, or rounded to six significant digits if it is a float.

    Returns None for any other type, and for a number that is not finite or too large for a chart.
    """
    if type(value) is int:
        return integer(value)
    if not isinstance(value, float) or not math.isfinite(value) or abs(value) > 1e300:
        return None
    return float(f"{value:.6g}")


def numbers(value: Any) -> dict[str, float]:
    """Return the entries of a mapping whose values are numbers; at most ``FIGURES`` entries are read."""
    found = {text(name): number(one) for name, one in list(mapping(value).items())[:FIGURES]}
    return {name: one for name, one in found.items() if one is not None}


def mapping(value: Any) -> Mapping[str, Any]:
    """Return ``value`` if it is a mapping, {} for anything else."""
    return value if isinstance(value, Mapping) else {}


def listed(value: Any) -> Sequence[Any]:
    """Return the first ``LISTED`` entries of a list, [] for anything else."""
    return value[:LISTED] if isinstance(value, list) else []


PATTERNS = (
    "patterns/patterns.js", "patterns/segments.js", "patterns/walk.js", "patterns/matching.js",
    "patterns/expressions.js",
)  # fmt: skip
"""The JavaScript files that parse and match patterns of keys; they need no other JavaScript file of the page."""

PROGRAM = (
    "words.js", "shades.js", "blocks.js", *PATTERNS, "model.js", "search.js", "colours.js", "treemap.js", "map.js",
    "tree.js", "charts.js", "overview.js", "panel.js", "finder.js", "network.js", "layers.js", "merge.js", "receipt.js",
    "clips.js", "run.js", "checked.js", "about.js", "app.js",
)  # fmt: skip
"""All JavaScript files of the page, in an order in which each file needs only earlier files."""


def page_html(data: Mapping[str, Any], title: str, *, plays: bool = False, plain: str = "") -> str:
    """Return the HTML of a page that shows ``data``. With ``plays``, it may play sound files from the page's origin.

    ``plain`` is HTML with the main figures, for browsers that run no JavaScript.

    Names in checkpoints are untrusted. They are embedded as JSON, escaped so that they cannot contain a tag, and shown
    only as text. As a second defence, the page's Content Security Policy (Level 3) allows no other script and no
    loading of other files, except sounds.
    """
    style, program = _text("page.css"), _program()
    policy = (
        f"default-src 'none'; script-src '{_digest(program)}'; style-src '{_digest(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'" + ("; media-src 'self'" if plays else "")
    )
    parts = {
        "POLICY": policy, "TITLE": html_escape(escape(title)), "STYLE": style, "DATA": _embedded(data),
        "PROGRAM": program, "PLAIN": plain,
    }  # fmt: skip
    return "".join(parts.get(piece, piece) for piece in _text("page.html").split("@@"))


def script_text(names: Iterable[str]) -> str:
    """Return the source of the JavaScript files ``names``, joined in this order."""
    return "\n".join(map(_text, names))


@cache
def _text(name: str) -> str:
    return resources.files(__package__).joinpath("browser", name).read_text("utf-8")


def _program() -> str:
    """Return the page's JavaScript, wrapped in one function so that its names are not global."""
    return '"use strict";\n(() => {\n' + script_text(PROGRAM) + "\n})();\n"


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _embedded(data: Mapping[str, Any]) -> str:
    """Return data as JSON for a script element of HTML; nothing in it can end the element (HTML, 4.12.1.3)."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
